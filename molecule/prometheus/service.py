#!/usr/bin/python3
"""Stands in for the service (http, 8000) and for another host's gateway (https, 8443)."""

import http.server
import ssl
import threading

SERVICE = "maya1_tts_ready 1\nmaya1_tts_cache_up 0\nmaya1_tts_queue_depth 0\nmaya1_tts_queue_limit 8\n"
ANSWERS = {
    8000: {"/metrics": SERVICE},
    8443: {"/metrics": SERVICE, "/metrics/node": "node_memory_MemTotal_bytes 1000\n"},
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = ANSWERS[self.server.server_port].get(self.path)
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write((answer or "").encode())


plain = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler)
gateway = http.server.ThreadingHTTPServer(("127.0.0.1", 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/opt/service/cert.pem", "/opt/service/key.pem")
gateway.socket = context.wrap_socket(gateway.socket, server_side=True)
threading.Thread(target=gateway.serve_forever).start()
plain.serve_forever()
