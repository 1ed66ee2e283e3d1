"""A page in the browser: upload a picture, choose among three captions, edit, and download what you accepted.

    python app.py --weights coco runs/base/base_weights.pt

The download is a ZIP: unpack it, and `load_data.py --source folder` makes training data of it. Nothing of a visit is
kept afterwards, unless --keep says where.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcap.captioning.accepted import BEST_RATING
from clipcap.captioning.desk import CONTROLS, LINGER, Desk, loader
from clipcap.cli.options import OnOff, arg, parse
from clipcap.cli.status import run
from clipcap.devices import CAPTIONING
from clipcap.errors import UserError, at_least, first_line
from clipcap.files import make_folder, only_writer

if TYPE_CHECKING:
    import gradio

KEPT = "The pictures and captions that you accept are kept here, without your name."
NOT_KEPT = f"Nothing is kept here: download what you accepted. It is deleted {LINGER // 60} minutes after you leave."


@dataclass
class PageArguments:
    """What captions the pictures, and who can reach the page."""

    _argument_group_name = "page"

    weights: list[str] | None = arg(None, "to choose from: files, or published names; without it, all of these")
    clip: str | None = arg(None, "NAME, NAME:PRETRAINED, file or folder, in place of the CLIP that the weights name")
    base: str | None = arg(None, "what the LoRA weights among them were trained on, if it has moved", metavar="FILE")
    normalize: bool | None = arg(None, "of published weights: divide CLIP's embeddings by their norm", action=OnOff)
    device: str = arg("auto", "cpu, cuda, ...")
    precision: str = arg("auto", "auto: bf16 or fp16 if fast; int8: rounded, faster on CPUs", choices=list(CAPTIONING))
    host: str | None = arg(None, "0.0.0.0 for the whole network; without it, this computer alone: 127.0.0.1")
    port: int = arg(7860, "of the page's address")
    share: bool = arg(False, "give it a public address too, through a program that Gradio downloads")
    keep: str | None = arg(None, "folder to keep what visitors accept in; without it, nothing is kept", metavar="DIR")
    max_megabytes: int = arg(20, "largest picture")


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until the program is interrupted."""
    (args,) = parse(
        argv,
        PageArguments,
        description="Serve a page on which people caption their pictures.",
        example="python app.py --weights coco runs/base/base_weights.pt",
    )
    with opened(args) as (address, desk):
        with suppress(KeyboardInterrupt):  # a request to terminate is one, too
            print(f"the page is at {address} until you press Ctrl-C", flush=True)
            pause = threading.Event()
            while not pause.wait(1):  # in steps: Windows interrupts no wait before its end
                desk.sweep()
        print("closing the page;", f"what was accepted is in {args.keep}" if args.keep else "nothing is kept")


@contextmanager
def opened(args: PageArguments) -> Iterator[tuple[str, Desk]]:
    """Serve the page as long as the context lasts; gives its address, and its desk, for the caller to sweep.

    Raises:
        UserError: Gradio cannot be imported, the first weights not be loaded, or the port or the folder not be used.
    """
    at_least(1, option=True, port=args.port, max_megabytes=args.max_megabytes)
    try:
        from clipcap.captioning.visitors import private_folder, served
    except Exception as error:  # it refuses some kinds of proxies in the environment as soon as it is imported
        if isinstance(error, ModuleNotFoundError) and error.name == "gradio":
            raise UserError("the page needs one more package: pip install gradio") from None
        raise UserError(f"the page needs Gradio, which cannot be imported: {first_line(error)}") from None
    from clipcap.weights.places import check_base, short_names
    from clipcap.weights.published import names

    check_base(args.weights or [], args.base)
    weights = dict(short_names(args.weights or names()))
    load = loader(weights, args.clip, args.device, args.precision, args.base, args.normalize)
    kept = Path(args.keep) if args.keep else None
    with ExitStack() as stack:
        if kept:
            make_folder(kept)
            stack.enter_context(only_writer(kept))
        desk = Desk(load, stack.enter_context(private_folder()), kept)
        page = build(desk, list(weights))
        address = stack.enter_context(served(page, args.host, args.port, args.share, args.max_megabytes))
        load(next(iter(weights)))  # so that a mistake shows at once
        yield address, desk


def build(desk: Desk, weights: Sequence[str]) -> "gradio.Blocks":
    """The page: what is on it, and what happens where."""
    import gradio as gr

    from clipcap.captioning.visitors import control, photo_input

    with gr.Blocks(title="Captions", analytics_enabled=False) as page:
        gr.Markdown("# Captions for your pictures")
        with gr.Row():
            with gr.Column():
                photo = photo_input(sources=["upload", "webcam"], label="Picture", height=380, elem_id="photo")
                name = gr.Dropdown(list(weights), label="Weights")
                with gr.Accordion("Options", open=False):
                    controls = [control(option, hint) for option, hint in CONTROLS.items()]
                write = gr.Button("Write captions", variant="primary", elem_id="write")
            with gr.Column():
                message = gr.Textbox(label="Please note", visible=False, interactive=False, elem_id="message")
                choices = gr.Radio([], label="Choose a caption", elem_id="choices")
                caption = gr.Textbox(label="Edit it", lines=4, buttons=["copy"], elem_id="caption")
                stars = list(range(BEST_RATING + 1))
                rating = gr.Radio(stars, label="Rate it: 0 is bad, 5 is perfect", elem_id="rating")
                accept = gr.Button("Accept", elem_id="accept")
                download = gr.DownloadButton("Nothing accepted yet", interactive=False, elem_id="download")
                gr.Markdown(KEPT if desk.kept else NOT_KEPT)

        def changed(request: gr.Request, photo: str | None) -> dict[Any, Any]:
            desk.change(str(request.session_hash), photo)
            return say("") | {choices: gr.Radio([], value=None), caption: ""}

        def say(text: str) -> dict[Any, Any]:
            return {message: gr.Textbox(text, visible=bool(text))}

        def written(request: gr.Request, photo: str | None, name: str, *values: Any) -> dict[Any, Any]:
            try:
                asked = dict(zip(CONTROLS, values, strict=True))
                found, note = desk.captions(str(request.session_hash), photo, name, asked)
            except UserError as error:
                return say(str(error)) | {choices: gr.Radio([], value=None), caption: ""}
            return say(note) | {choices: gr.Radio(found, value=found[0]), caption: found[0], rating: None}

        def accepted(request: gr.Request, text: str, choice: str | None, stars: int | None) -> dict[Any, Any]:
            try:
                file, count = desk.accept(str(request.session_hash), text, choice, stars)
            except UserError as error:
                return say(str(error))
            label = f"Download {count} accepted {'caption' if count == 1 else 'captions'}"
            return say("") | {download: gr.DownloadButton(label, value=str(file), interactive=True)}

        def left(request: gr.Request) -> None:
            desk.leave(str(request.session_hash))

        photo.input(changed, photo, [message, choices, caption], api_visibility="private")
        write.click(written, [photo, name, *controls], [message, choices, caption, rating], api_visibility="private")
        choices.input(None, choices, caption, js="choice => choice")
        accept.click(accepted, [caption, choices, rating], [message, download], api_visibility="private")
        page.unload(left)
    return page


if __name__ == "__main__":
    run(main)
