"""BigQuery's Storage Read API as a local gRPC server, over the results of queries of the REST double."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pyarrow as pa
from google.auth.credentials import AnonymousCredentials
from google.cloud.bigquery_storage import BigQueryReadClient, types
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

from gated_backfill.common.model.arrow.types import ARROW_TYPES
from tests.rest_service import PROJECT, RESULTS, Service

SERVICE = "google.cloud.bigquery.storage.v1.BigQueryRead"
BATCH_ROWS = 1_000
STREAMS = 2


class StorageDouble:
    """The API for one project. `fail` makes the next calls of a method fail with a status."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._failures: dict[str, list[tuple[grpc.StatusCode, str]]] = {}
        self.sessions: list[types.ReadSession] = []  #: that were asked for
        self.opened = 0  #: clients
        self._server = grpc.server(ThreadPoolExecutor(4))
        handlers = {
            "CreateReadSession": grpc.unary_unary_rpc_method_handler(
                self._create_session,
                request_deserializer=types.CreateReadSessionRequest.deserialize,
                response_serializer=types.ReadSession.serialize,
            ),
            "ReadRows": grpc.unary_stream_rpc_method_handler(
                self._read_rows,
                request_deserializer=types.ReadRowsRequest.deserialize,
                response_serializer=types.ReadRowsResponse.serialize,
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> StorageDouble:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def fail(self, method: str, status: grpc.StatusCode, message: str) -> None:
        self._failures.setdefault(method, []).append((status, message))

    def open_client(self) -> BigQueryReadClient:
        self.opened += 1
        channel = grpc.insecure_channel(f"127.0.0.1:{self._port}")
        return BigQueryReadClient(
            transport=BigQueryReadGrpcTransport(channel=channel, credentials=AnonymousCredentials())
        )

    def _create_session(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._fail_if_told("CreateReadSession", context)
        assert request.parent == f"projects/{PROJECT}"
        assert request.read_session.data_format == types.DataFormat.ARROW
        self.sessions.append(request.read_session)
        rows = self._rows(request.read_session.table)
        count = 1 if request.max_stream_count == 1 else STREAMS
        return types.ReadSession(
            name=request.read_session.table,
            table=request.read_session.table,
            data_format=types.DataFormat.ARROW,
            arrow_schema=_schema(rows),
            streams=[types.ReadStream(name=f"{request.read_session.table}/streams/{n}/{count}") for n in range(count)],
        )

    def _read_rows(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        table, _, stream = request.read_stream.partition("/streams/")
        number, count = map(int, stream.split("/"))
        rows = self._rows(table)
        for at, batch in enumerate(rows.to_batches(BATCH_ROWS)[number::count]):
            if at:
                self._fail_if_told("ReadRows", context)  # after some rows
            yield types.ReadRowsResponse(
                arrow_record_batch=types.ArrowRecordBatch(
                    serialized_record_batch=batch.serialize().to_pybytes(), row_count=batch.num_rows
                ),
                row_count=batch.num_rows,
                arrow_schema=None if at else _schema(rows),
            )

    def _rows(self, table: str) -> pa.Table:
        start = f"projects/{PROJECT}/datasets/{RESULTS['datasetId']}/tables/"
        assert table.startswith(start)
        result = self._service.jobs[table.removeprefix(start)].rows
        assert result is not None, "of a query"
        columns, rows = result
        schema = pa.schema([(name, ARROW_TYPES[kind]) for name, kind in columns.items()])  # pyright: ignore[reportArgumentType]
        return pa.table([list(values) for values in zip(*rows, strict=True)], schema=schema)

    def _fail_if_told(self, method: str, context: grpc.ServicerContext) -> None:
        if self._failures.get(method):
            context.abort(*self._failures[method].pop(0))


def _schema(rows: pa.Table) -> types.ArrowSchema:
    return types.ArrowSchema(serialized_schema=rows.schema.serialize().to_pybytes())
