#!/usr/bin/python3
"""A webhook on 127.0.0.1:9099 that keeps what it is sent, one JSON document a line."""

import http.server
import json


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("/opt/webhook.log", "a") as log:
            log.write(json.dumps({"authorization": self.headers["Authorization"], "body": body}) + "\n")
        self.send_response(200)
        self.end_headers()


http.server.HTTPServer(("127.0.0.1", 9099), Handler).serve_forever()
