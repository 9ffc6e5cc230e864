"""Draw and redraw pictures through the `openai` package from a running `var-hf serve`.

python examples/serving/openai_client.py [--url URL] [--prompt rocket] [--out outputs/openai]

The seed and other fields that OpenAI's API does not have go into `extra_body`.
"""

import argparse
import base64
import os
from pathlib import Path

from openai import BadRequestError, OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--prompt", default="rocket", help="Class name or class id.")
    parser.add_argument("--out", type=Path, default=Path("outputs/openai"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    key = os.environ.get("VAR_HF_API_KEYS", "none").split(",")[0]
    client = OpenAI(base_url=f"{arguments.url}/v1", api_key=key)
    (model,) = client.models.list()

    answer = client.images.generate(
        model=model.id, prompt=arguments.prompt, n=2, extra_body={"seed": 0, "top_p": 0.9}
    )
    files = [base64.b64decode(image.b64_json) for image in answer.data]
    for number, file in enumerate(files):
        (arguments.out / f"{number}.png").write_bytes(file)

    events = client.images.generate(
        model=model.id, prompt=arguments.prompt, stream=True, extra_body={"seed": 1}
    )
    for event in events:
        name = f"scale-{event.scale}.png"
        (arguments.out / name).write_bytes(base64.b64decode(event.b64_json))

    edited = client.images.edit(
        model=model.id,
        image=("image.png", files[0]),
        prompt=arguments.prompt,
        extra_body={"strength": 0.5, "seed": 2},
    )
    (arguments.out / "edited.png").write_bytes(base64.b64decode(edited.data[0].b64_json))

    try:
        client.images.generate(model=model.id, prompt="no such class")
    except BadRequestError as error:
        print(f"As expected: {error.body['message']}")
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
