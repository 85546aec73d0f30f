"""A client for whoever has Python and nothing else: one file, made for one server."""

from __future__ import annotations

from sslt.deploy.serving.inputs import HISTORY, IMAGE, PARTS, QUESTION, TEXT, Reads

_CODE = '''"""Asks a server of `sslt serve`. Needs Python's standard library alone.

    from client import predict
    predict([{example}])

    python client.py {usage}
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request

URL = os.environ.get("SSLT_URL", {address!r})
KEY = os.environ.get("SSLT_API_KEY")


def ask(kind, inputs, timeout=60.0, tries=3):
    """The answers to a list of inputs, one dict each; one that could not be answered has `error`.

    Raises RuntimeError with the server's reason.
    """
    body = json.dumps({{"inputs": [{encoded} for item in inputs]}}).encode()
    headers = {{"Content-Type": "application/json", **({{"X-API-Key": KEY}} if KEY else {{}})}}
    for left in range(tries - 1, -1, -1):
        request = urllib.request.Request(URL + "/" + kind, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return json.load(reply)["predictions" if kind == "predict" else kind]
        except urllib.error.HTTPError as e:
            text = e.read().decode(errors="replace")
            try:
                found = json.loads(text)
            except ValueError:
                found = {{}}
            if e.code == 503 and left:  # too much to do, or starting: it says when to come again
                time.sleep(float(e.headers.get("Retry-After", 1)))
                continue
            rows = found.get("predictions" if kind == "predict" else kind)
            if rows:
                return rows
            raise RuntimeError("%d: %s" % (e.code, found.get("error", text[:500]))) from None
        except urllib.error.URLError as e:
            raise RuntimeError("%s does not answer: %s" % (URL, e.reason)) from None


def predict(inputs, **more):
    """What the model predicts for each input."""
    return ask("predict", inputs, **more)


def features(inputs, **more):
    """The encoder's features of each input, a list of numbers."""
    return [row.get("features") for row in ask("features", inputs, **more)]

{helper}
if __name__ == "__main__":
    if {unasked}:
        sys.exit(__doc__)
    try:
        for row in predict({read}):
            print(json.dumps(row, ensure_ascii=False))
    except (OSError, RuntimeError, ValueError) as e:  # no such file, no server, or what it says
        sys.exit(str(e))
'''
_PICTURE = '''
def picture(item):
    """The base64 of a picture: of a file by its path, or of the bytes of one."""
    if isinstance(item, (bytes, bytearray)):
        return base64.b64encode(item).decode()
    with open(item, "rb") as file:
        return base64.b64encode(file.read()).decode()

'''
_LINES = "[json.loads(line) for line in sys.stdin]"


def client_code(address: str, reads: Reads) -> str:
    """The file's text, for the inputs that a run reads. address: the server's, as http://HOST:PORT."""
    example, usage, read = {
        IMAGE: ('"photo.jpg"', "photo.jpg …", "sys.argv[1:]"),
        TEXT: ('"a text"', "'a text' …", "sys.argv[1:]"),
        HISTORY: ('["first", "second"]', "< histories.jsonl", _LINES),
        PARTS: ("{" + ", ".join(f'"{name}": "a text"' for name in reads.parts) + "}", "< inputs.jsonl", _LINES),
        QUESTION: ('{"question": "Who?", "context": "It was I."}', "< questions.jsonl", _LINES),
    }[reads.kind]
    image = reads.kind == IMAGE
    encoded, helper = ("picture(item)", _PICTURE) if image else ("item", "")
    unasked = "len(sys.argv) < 2" if read == "sys.argv[1:]" else "sys.stdin.isatty()"
    made = _CODE.format(example=example, usage=usage, read=read, unasked=unasked, address=address, encoded=encoded, helper=helper)
    return made if image else made.replace("import base64\n", "")
