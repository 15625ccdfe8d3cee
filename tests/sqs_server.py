"""A server of SQS in this process (moto's), which can be told to fail."""

from __future__ import annotations

import io
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Fault = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]] | None]
"""Of an operation and its parameters: a status and an answer instead of the server's own."""

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "eu-west-1",
}


class SqsServer:
    """moto's server, with faults in front of it."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self.app = DomainDispatcherApplication(create_backend_app)
        self.fault: Fault | None = None
        self.calls: list[str] = []
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.client = boto3.client(
            "sqs",
            endpoint_url=self.url,
            region_name="eu-west-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )

    def close(self) -> None:
        self.client.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        self.calls.append(operation)
        if self.fault is not None:
            content = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            instead = self.fault(operation, json.loads(content))
            if instead is not None:
                status, answer = instead
                start_response(f"{status} .", [("Content-Type", "application/x-amz-json-1.0")])
                return [json.dumps(answer).encode()]
            environ["wsgi.input"] = io.BytesIO(content)
        return self.app(environ, start_response)  # type: ignore[no-any-return]

    def make(self, *, fifo: bool = False, receives: int = 2, **attributes: str) -> str:
        """A queue with a lease of a second and a dead-letter queue; gives its name."""
        suffix = ".fifo" if fifo else ""
        own = {"FifoQueue": "true"} if fifo else {}
        name = f"queue-{uuid.uuid4().hex}"
        dead = self.client.create_queue(QueueName=f"{name}-dead{suffix}", Attributes=own)
        asked = self.client.get_queue_attributes(
            QueueUrl=dead["QueueUrl"], AttributeNames=["QueueArn"]
        )
        policy = {
            "deadLetterTargetArn": asked["Attributes"]["QueueArn"],
            "maxReceiveCount": receives,
        }
        self.client.create_queue(
            QueueName=name + suffix,
            Attributes={
                "VisibilityTimeout": "1",
                "RedrivePolicy": json.dumps(policy),
                **own,
                **attributes,
            },
        )
        return name + suffix
