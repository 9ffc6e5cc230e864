"""A process that runs code from stdin, one JSON string per line, and answers on stdout.

The Hub's clients read their addresses when they are imported, and importing them takes seconds: one
process per kind of client serves many tests.
"""

import contextlib
import io
import json
import logging
import sys
import time
import traceback

# The clients wait for seconds before they try again. What they do is the same without the waiting.
_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, 0.01))


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr
    names: dict = {"__name__": "client"}
    for line in sys.stdin:
        request = json.loads(line)
        names |= request["values"] | {"result": None}
        log = io.StringIO()
        handler = logging.StreamHandler(log)
        logging.getLogger("var_hf").addHandler(handler)
        answer = {"result": None, "error": None}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                exec(request["code"], names)  # the tests' own code
            answer["result"] = names["result"]
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            answer["error"] = {
                "kinds": kinds,
                "message": str(error),
                "trace": traceback.format_exc(),
            }
        logging.getLogger("var_hf").removeHandler(handler)
        answer["log"] = log.getvalue()
        print(json.dumps(answer), file=answers, flush=True)


main()
