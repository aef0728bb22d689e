"""Streams one answer from bough over plain grpcio; README.md has the three commands to run it."""
import sys

import grpc
from bough.v1 import generation_pb2 as pb
from bough.v1 import generation_pb2_grpc
from google.rpc import error_details_pb2, status_pb2


def explain(error):
    """The code and message of a failed call, then what its google.rpc details say."""
    yield f"{error.code().name}: {error.details()}"
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    for detail in status.details:
        for kind in (error_details_pb2.BadRequest, error_details_pb2.RetryInfo,
                     error_details_pb2.ErrorInfo):
            message = kind()
            if detail.Unpack(message):
                yield f"  {kind.DESCRIPTOR.name}: {message}".rstrip()


def main(prompt, address="127.0.0.1:50051"):
    request = pb.GenerateRequest(
        text=prompt,
        sampling=pb.SamplingOptions(temperature=0.8, seed=1),
        stop=pb.StopOptions(max_tokens=64),
    )
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        try:
            for event in stub.GenerateStream(pb.GenerateStreamRequest(request=request)):
                if event.HasField("delta"):
                    print(event.delta.text, end="", flush=True)
                elif event.HasField("end"):
                    print(f"\n{event.end.usage}", file=sys.stderr)
        except grpc.RpcError as error:
            sys.exit("\n".join(explain(error)))


if __name__ == "__main__":
    main(*sys.argv[1:3])
