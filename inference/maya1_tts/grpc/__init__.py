"""The gRPC interface, in the same process and event loop as HTTP."""

import os

# gRPC's core writes lines of its own to stderr, one for each failed handshake; the log is JSON and bounded.
# It has to be said before grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from maya1_tts.grpc.server import GrpcServer

__all__ = ["GrpcServer"]
