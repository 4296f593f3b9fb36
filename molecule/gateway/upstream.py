#!/usr/bin/python3
"""Stands in for the speech service: says what reached it, and streams slowly when asked to.

/v1/slow streams two pieces with two seconds after each, /v1/slow?pieces=N that many. It listens on
port 8000, or the one that it is started with.
"""

import http.server
import json
import sys
import time
import urllib.parse

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 8000


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/v1/slow":
            pieces = int(urllib.parse.parse_qs(query).get("pieces", ["2"])[0])
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number in range(pieces):
                piece = b"first" if number == 0 else b"second"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                time.sleep(2)
            self.wfile.write(b"0\r\n\r\n")
            return
        body = json.dumps({"path": self.path, "headers": dict(self.headers), "port": PORT}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")  # as the service's page has it
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
