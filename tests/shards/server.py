"""An HTTP server on loopback that answers ranges, and fails on demand."""

import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves a folder; ``fault(path, count)`` says what goes wrong with request number ``count`` for a path."""

    def __init__(self, folder, fault=None, ranges=True):
        self.folder, self.fault, self.ranges = folder, fault or (lambda path, count: None), ranges
        self.requests, self.bytes, self.lock = Counter(), 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                outer.answer(self)

        class Many(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self.http = Many(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, request):
        name = request.path.lstrip("/")
        with self.lock:
            self.requests[name] += 1
            fault = self.fault(name, self.requests[name])
        path = self.folder / name
        if fault == "500" or not path.is_file():
            request.send_error(500 if fault == "500" else 404)
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if wanted and self.ranges:
            start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        else:
            request.send_response(200)
        if fault != "cut without length":
            request.send_header("Content-Length", str(len(data)))
        request.send_header("Connection", "close")
        request.close_connection = True
        request.end_headers()
        self.bytes += len(data)
        if fault == "stall":
            request.wfile.write(data[: len(data) // 2])
            request.wfile.flush()
            time.sleep(1.5)
        elif fault in ("cut", "cut without length"):
            request.wfile.write(data[: len(data) // 2])
        elif request.command == "GET":
            request.wfile.write(data)

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()
