"""For HEALTHCHECK: ends with 0 if the server of this container is ready."""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT", "80")), timeout=8)
try:
    connection.request("GET", "/health")
    response = connection.getresponse()
    print(response.status, response.read().decode(errors="replace"))
    sys.exit(0 if response.status == 200 else 1)
except OSError as error:
    sys.exit(f"nobody answers: {error}")
