"""What the page of app.py lets the visitors of a network do: see the page, and hand over pictures. Nothing else.

Gradio brings more: it opens uploads in any of Pillow's formats, fetches addresses that a visitor names, and has dozens
of other routes. None of them is needed here.
"""

import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

from clipcap.captioning.desk import OPTIONS
from clipcap.cli.processes import launched
from clipcap.errors import UserError, first_line

WAITING = 32  # visitors in the queue; the next one is told to come back
SMALL = 2**20  # bytes: more than any request has besides a picture

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

PUBLIC = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.*"
    r"|/gradio_api/(startup-events|upload|upload_progress|queue/(join|data)|cancel|reset|heartbeat/\w+)"
    r"|/gradio_api/file=(?!\w+:/).*",  # Gradio itself gives out no file but uploads; an address it would fetch
    re.DOTALL,
)
POLICY = (  # of the content: whatever Gradio's page may name elsewhere, a browser asks this server alone
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:"
)


def photo_input(**options: Any) -> gr.Image:
    """Where visitors put a picture. The event gets its file as it came, so that `clipcap.clip.images` alone decodes it.

    Args:
        **options: those of gr.Image.
    """
    image = gr.Image(**options)
    to_cache = image.async_move_resource_to_block_cache

    def preprocess(upload: ImageData | None) -> str | None:
        return upload.path if upload else None

    async def uploaded(file: Any) -> str | None:
        if re.match(r"\w+:/", str(file)):
            raise gr.Error("A picture is uploaded as a file, not named by an address.")
        return await to_cache(file)

    # In this object, not in a class derived from gr.Image: Gradio writes a .pyi beside the module of such a class.
    vars(image).update(preprocess=preprocess, async_move_resource_to_block_cache=uploaded)
    return image


def control(name: str, hint: str) -> gr.components.Component:
    """Where visitors set an option of predict.py. Numbers are text, since Gradio's numbers are 0 until they are set."""
    label, choices, default = name.replace("_", " "), OPTIONS[name].metadata.get("choices"), OPTIONS[name].default
    if name == "method":  # several captions need samples or beams
        choices = ["nucleus", "beam"]
    if choices:
        return gr.Dropdown(choices if default else [("any", ""), *choices], label=label, info=hint)
    return gr.Textbox(label=label, info=hint)


class Gate:
    """ASGI middleware: what is not PUBLIC is answered with 404, what is too large with 413; answers have the POLICY.

    Args:
        app: what answers the others.
        largest: bytes of a picture. Gradio reads a request of any size into memory, and any number of pictures in one.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], largest: int) -> None:
        self.app, self.largest = app, largest

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] == "http" and (status := self._refused(scope)):
            while (await receive()).get("more_body"):  # a browser reads no answer before it has sent everything
                pass
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _refused(self, scope: Message) -> int:
        """The status of a request that is refused; 0 for all others."""
        if not PUBLIC.fullmatch(scope["path"]):
            return 404
        headers = dict(scope["headers"])  # a browser always says how much it sends
        most = SMALL + self.largest * (scope["path"] == "/gradio_api/upload")
        too_large = b"transfer-encoding" in headers or int(headers.get(b"content-length", 0)) > most
        return 413 if too_large else 0


@contextmanager
def environment(**here: str) -> Iterator[None]:
    """Variables of the environment as long as the context lasts; what they were before comes back."""
    before = {name: os.environ.get(name) for name in here}
    os.environ |= here
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # where case does not count, two names may be one
            else:
                os.environ[name] = value


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads and downloads of the pages that are built in this context; it is deleted at the end."""
    with (
        TemporaryDirectory(prefix="clipcap-") as folder,
        # Gradio reads these again and again. Run history is what it would write into the browsers of visitors.
        environment(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False"),
    ):
        yield Path(folder)


@contextmanager
def served(page: gr.Blocks, host: str | None, port: int, share: bool, max_megabytes: int) -> Iterator[str]:
    """Serve a page as long as the context lasts; gives its address.

    Args:
        page: what to serve.
        host: where to listen; None for $GRADIO_SERVER_NAME, or else for this computer alone.
        port: likewise.
        share: ask Gradio for a public address too.
        max_megabytes: the largest upload.

    Raises:
        UserError: the port cannot be used, Gradio cannot serve the page, or a launcher started several processes.
    """
    if launched()[1] > 1:
        raise UserError("the page is served by a single process: start it without torchrun")
    try:
        _launch(page, host, port, share, max_megabytes)
        yield str(page.share_url or page.local_url)
    finally:
        page.close(verbose=False)


def _launch(page: gr.Blocks, host: str | None, port: int, share: bool, max_megabytes: int) -> None:
    """Start the server of a page. Raises UserError."""
    name = (host or os.environ.get("GRADIO_SERVER_NAME", "")).strip("[]")
    # Gradio asks its own server whether it is there, which no proxy could.
    direct = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1", "localhost", name]
    no_proxy = ",".join(filter(None, direct))
    try:
        with environment(no_proxy=no_proxy, NO_PROXY=no_proxy):
            page.queue(max_size=WAITING).launch(
                server_name=f"[{name}]" if ":" in name else name or None,  # as an address has IPv6
                server_port=port,
                share=share,
                max_file_size=f"{max_megabytes}mb",
                app_kwargs={"middleware": [(Gate, (max_megabytes * 2**20,), {})]},
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                footer_links=[],
                ssr_mode=False,
                quiet=True,
                prevent_thread_lock=True,
            )
    except (OSError, OverflowError):  # whatever keeps the server from listening
        where = f"port {port}{f' of {host}' if host else ''}"
        raise UserError(
            f"{where} cannot be used, mostly because another program has it: choose another --port"
        ) from None
    except Exception as error:  # Gradio raises anything where it does not reach its own server
        raise UserError(f"the page cannot be served: {first_line(error)}") from None
