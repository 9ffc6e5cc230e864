"""The service on this machine: Ray and Ray Serve inside one command, and their end."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from var_hf.pipelines.loading import choose_device
from var_hf.serving.protocol import Limits, ServeOptions, served_name

logger = logging.getLogger(__name__)

APPLICATION = "var-hf"
#: Environment of Ray, where it is not set already.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_worker_niceness": "0",  # its own default gives way to all other programs
}


def serve_options(
    model: str,
    *,
    name: str,
    dtype: str = "auto",
    device: str = "auto",
    max_batch: int = 16,
    max_replicas: int | None = None,
    min_replicas: int = 1,
    threads: int | None = None,
    drain_seconds: float = 60.0,
    **limits: int,
) -> ServeOptions:
    """Options with replicas and threads for the devices of this machine.

    Args:
        model: Folder or Hub repository.
        name: The model as the user named it.
        dtype, device, max_batch, min_replicas, drain_seconds: As in [`ServeOptions`].
        max_replicas: Most replicas; one per device by default.
        threads: CPU threads of a replica; the cores divided by the replicas by default.
        **limits: As in [`Limits`].

    Raises:
        ValueError: There is no such device, or not enough of them.
    """
    chosen = choose_device(device)
    accelerators = torch.accelerator.device_count() if chosen.type == "cuda" else 0
    if chosen.index is not None:
        accelerators = min(accelerators, 1)
    most = max_replicas or max(accelerators, min_replicas, 1)
    if min_replicas > most:
        raise ValueError(f"--min-replicas {min_replicas} is more than --replicas {most}.")
    if accelerators and most > accelerators:
        raise ValueError(
            f"{most} replicas need a device each, and there are {accelerators}. Pass a smaller "
            "--replicas."
        )
    one_device = accelerators > 0 and chosen.index is None
    return ServeOptions(
        model=model,
        name=served_name(name),
        dtype=dtype,
        # With a GPU of its own, a replica sees no other one.
        device=chosen.type if one_device else str(chosen),
        max_batch=max_batch,
        min_replicas=min_replicas,
        max_replicas=most,
        threads=threads or max(1, (os.cpu_count() or 1) // most),
        gpus_per_replica=int(one_device),
        limits=Limits(**limits),
        drain_seconds=drain_seconds,
    )


def check_port(host: str, port: int) -> None:
    """Raise an ``OSError`` unless a port is free.

    Ray Serve would report a port in use only after minutes of new tries.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OSError(
            f"Port {port} on {host} cannot be used: {error.strerror}. Pass another one with --port."
        ) from error


def start_ray(places: int, tries: int = 3) -> None:
    """Start Ray in this process and its children.

    Args:
        places: Number of replicas that there is room for.
        tries: Ray gives its processes 30 seconds to start, which a busy machine may exceed.

    Raises:
        OSError: Ray did not start.
    """
    import ray

    for left in reversed(range(tries)):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=places,
                logging_level=logging.ERROR,
                log_to_driver=False,  # they are in Ray's session folder
            )
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise OSError(f"Ray did not start: {error}") from error
            logger.warning("Ray did not start and is started again: %s", error)


def deployment_error() -> str | None:
    """The last line of what a deployment raised while it started, if one did."""
    from ray import serve

    for application in serve.status().applications.values():
        for deployment in application.deployments.values():
            lines = deployment.message.strip().splitlines()
            if deployment.status not in ("HEALTHY", "UPDATING") and lines:
                return lines[-1]
    return None


class Server:
    """Ray Serve with our application, in processes of its own.

    Args:
        options: What is served.
        host: Address to listen on.
        port: Port to listen on.

    Raises:
        OSError: The port is in use, or the model could not be loaded.
        ValueError: The model is no pipeline of this package.
    """

    def __init__(self, options: ServeOptions, host: str = "127.0.0.1", port: int = 8000):
        check_port(host, port)
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from ray import serve

        from var_hf.serving.replicas import build_application

        self.options = options
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        start_ray(places=max(os.cpu_count() or 1, options.max_replicas))
        try:
            serve.start(
                logging_config={"log_level": "WARNING"}, http_options={"host": host, "port": port}
            )
            self.handle = serve.run(build_application(options), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:  # of Serve, for whatever a deployment raised
            reason = deployment_error() or str(error)
            self.stop()
            raise OSError(f"{options.name} could not be served: {reason}") from error
        except BaseException:
            self.stop()
            raise

    def drain(self) -> int:
        """Refuse new requests, and wait for the accepted ones.

        Returns:
            Number of requests that were not finished in `drain_seconds`.
        """
        seconds = self.options.drain_seconds
        return self.handle.drain.remote(seconds).result(timeout_s=seconds + 10)

    def stop(self) -> None:
        """End all processes."""
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()


def run_server(
    options: ServeOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    started: Callable[[str], None],
) -> int:
    """Serve until SIGTERM or Ctrl+C, then finish what was accepted. A second signal ends at once.

    Args:
        options: What is served.
        host: Address to listen on.
        port: Port to listen on.
        started: Called with the address when the server accepts requests.

    Returns:
        Number of requests that were not finished in time.
    """
    server = Server(options, host, port)
    try:
        with signals() as asked:
            started(server.url)
            asked.wait()
        return server.drain()
    finally:
        server.stop()


@contextmanager
def signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets."""
    asked = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
