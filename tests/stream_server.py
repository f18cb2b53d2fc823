"""A camera that sends JPEG after JPEG over HTTP, and that can fall silent, go and come back."""

import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

ENOUGH_TO_OPEN = 60  # images, which FFmpeg waits for before it knows what a stream is


class Camera:
    """What the server does.

    Attributes:
        url: with a user and a password.
        sent: how many images were sent.
        refused: how many requests were.
        most: images of a connection, after which it is closed, or with `hangs` silent.
        is_gone: whether requests are refused.
    """

    def __init__(self):
        self.sent = self.refused = 0
        self.most, self.hangs, self.is_gone = None, False, False
        self.closing = threading.Event()

    def send(self, write):
        for count in range(self.most if self.most is not None else 10**6):
            image = np.full((48, 64, 3), count % 200, np.uint8)
            jpeg = cv2.imencode(".jpg", image)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            write(head.encode() + jpeg + b"\r\n")
            self.sent += 1
            if self.closing.wait(0.005):
                return
        if self.hangs:
            self.closing.wait()


@contextmanager
def serving(camera):
    """Serve until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if camera.is_gone:
                camera.refused += 1
                return self.send_error(503)
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with suppress(OSError):  # the reader is gone
                camera.send(self.wfile.write)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    camera.url = f"http://user:secret@127.0.0.1:{server.server_port}/secret?key=secret"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield camera
    finally:
        camera.closing.set()
        server.shutdown()
        server.server_close()
