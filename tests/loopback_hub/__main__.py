"""Run a hub until stdin closes or SIGTERM comes: ``python -m loopback_hub --port 0`` prints where, as a JSON line."""

import argparse
import json
import signal
import sys
from types import FrameType

from loopback_hub.hub import LoopbackHub


def _leave(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(prog="loopback_hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="the port of the hub; 0: any")
    parser.add_argument("--no-xet", action="store_true", help="a hub that knows LFS only")
    parser.add_argument("--rate", type=float, help="bytes a second that all downloads of large files share")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    with LoopbackHub(port=options.port, xet=not options.no_xet, rate=options.rate) as hub:
        sys.stdout.write(json.dumps({"endpoint": hub.endpoint, "cdn": hub.cdn, "token": hub.token}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
