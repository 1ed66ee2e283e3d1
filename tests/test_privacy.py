"""What training captions hold about people stays out of the data, and evaluate.py says what a model gives away."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_broken_data import soon
from tiny import byte_tokenizer, tiny_config

import basic_finetuning
import evaluate
import load_data
from clipcap.captioning.rules import Rules
from clipcap.data.cleaning import Cleaner, Cleaning
from clipcap.data.contacts import contacts, emails, handles, phones
from clipcap.data.pickles import clipcap
from clipcap.data.store import EmbeddingStore
from clipcap.errors import UserError
from clipcap.evaluation.metrics import tokenize
from clipcap.evaluation.privacy import longest_copy, secret_losses
from clipcap.evaluation.report import read_report
from clipcap.model.batches import collate, encode_captions
from clipcap.model.clipcap import ClipCap
from clipcap.weights.checkpoint import load_checkpoint, save_checkpoint

PHONES = [
    "+49 151 2345678", "(555) 123-4567", "555.123.4567", "555-123-4567", "07700 900123", "0812-3456-7890",
    "+1 (212) 555-0187", "+44 (0)20 7946 0958", "+91 98765 43210", "98765 43210", "9876543210", "081234567890",
    "(11) 91234-5678", "06 12 34 56 78", "06.12.34.56.79", "030/1234567", "0049 151 2345679", "8 (912) 345-67-89",
    "612 345 678", "1-800-555-0199", "555-123-4567/8", "555\u202f123\u202f4567", "555\u2009123\u20094567",
    "555·123·4567", "5️⃣5️⃣5️⃣1️⃣2️⃣3️⃣4️⃣5️⃣6️⃣7️⃣",
]  # fmt: skip
EMAILS = [
    "jane@doe.com", "jane.d+x@mail.example.co.uk", "JANE_DOE@GMAIL.COM", "müller@bücher.de", "почта@домен.рф",
    "jo＠doe．com", "joe@\u200bdoe.com", "janet (at) doe dot com", "jim(at)doe.com", "ann [at] doe [dot] com",
    "amy at gmail dot com", "sam@ doe.com", "tim @ doe.com", "1234@qq.com", "a-b@c-d.info", "o'neil@x.io",
    "ben @ web.de", "bo @ mail.example.co.uk", "liv @ st.tropez.com", "lea @ doe (dot) io", "лев @ домен.рф",
    "bob@localhost.localdomain", "x_y@z.museum", "eve{at}mail.org", "tim @ doe.agency",
    "hello @ brand.shop", "info@ salon-anna.wien", "TIM @ DOE.DE", "Tim @ Doe.Com", "@kim@mastodon.social",
]  # fmt: skip
HANDLES = [
    "@jane.doe", "@_under_score_", "@JANE99", "@j", "@2pac_official", "＠fullwidth", "@\u200bzero", "@ze\u200bro2",
    "@ｗｉｄｅ", "@a.b.c.d", "@thirty_letters_of_a_handle_1234", "@a1", "@x__x", "@insta.gram", "@000000", "@mum",
    "@dad.of.3", "@t_t", "@Foo.Bar_Baz", "@𝐛𝐨𝐥𝐝", "@müller", "@mu\u0308ller", "@ümit", "@иван",
]  # fmt: skip
IN_A_ROW = [
    "{}555-123-4567{},{}555-765-4321{}", "{}(555)123-4567{}{}(555)765-4321{}", "{}0171 1234567{} / {}0172 7654321{}",
    "{}0171-1234567{}/{}0172-7654321{}", "{}0171 1234567{} {}0172 7654321{}", "{}555-123-4567{} | {}555-765-4321{}",
    "{}555.123.4567{} {}555.765.4321{}", "{}98765 43210{},{}+1 (212) 555-0187{}", "{}612 345 678{},{}06 12 34 56 78{}",
    "{}555-123-4567{};{}555-765-4321{}", "{}555-123-4567{}&{}555-765-4321{}", "{}9876543210{} {}9123456780{}",
    "{}06.12.34.56.78{}/{}06.12.34.56.79{}", "{}+49 151 2345678{}{}+49 151 2345679{}",
    *(f"{{}}jane@mail.com{{}}{sign}{{}}bob@mail.com{{}}" for sign in "/|&-,;_+."),
    "{}a@b.com{}/{}c@d.com{}|{}e@f.com{}, {}g@h.com{}", "{}_jane@mail.com{}_", "{}jane@mail.com{}2024",
    "phone number is {}555 0199{}", "Thanks{}@jane_doe{}", "by{}@jane{}", "{}@jane{}{}@kim_x{}", "と{}@jane{}さんと",
    "instagram.com/{}jane.doe{}/", "ig: {}jane_doe{}", "IG: {}@jane{}", "insta:{}jane{}!",
]  # fmt: skip
AROUND = ["with {} today", "cc:{}", "🔥{} 🔥", "({})", "love it. {}!", "{}"]
NO_PHONES = """New drop 12/25/2023 🎄|out on 2023-12-25|25.12.2023|12-14.05.2023|01-02.05.2023|01.05.2023-03.05.2023
05/12/2024 - 08/12/2024|12.05.2023 19.00|20240512|12052024|01 01 2000|08.08.08|since 1998|2019-2020|2019/2020
2018 2019 2020 2021|1914-1918 1939-1945|1920-2020 100 years|open 24/7|10:30 am|10.30 - 18.00|call at 10:30|Mon-Fri 9-5
☎️ from 10.00-18.00|10,000 steps|10,000,000 streams|1.000.000 views|100.000.000 plays|1 000 000 thank you|1000000000
$1,299.99|€1.299,00|Rp 1.250.000|Rp1250000|for 250000 IDR|₦150,000|+10000 followers|18+|100-1000 followers|10.000 20.000
3-2 final|21-19 21-17|6-4, 3-6, 7-6 (7-4)|1-0 2-0 3-0|90210|10001-1234|75001 Paris|#1|#5551234567|#blessed2023|call 911
km 42.195|3x12 100kg|60 80 100 120 kg|10 20 30 40 50|1 2 3 4 5 6 7 8 9 10|100 200 300 400|5 6 7 8|1/500 f2.8 iso 100
1/2000 ISO 3200|40.7128° N, 74.0060° W|48.858370|99.99%|3.14159265|192.168.0.1|v2.10.3|1 1/2 cup|350°F for 25-30 min
ISBN 978-3-16-148410-0|ISBN 9783161484100|call me in 2024|phone 12 pro max|text 3 friends|4 8 15 16 23 42|S03E12
flight LH 4567|1 Corinthians 13:4-8|5000-10000 steps|3️⃣2️⃣1️⃣
52.520008,13.404954|135 155 175 185 205 225|135/155/175/185/205/225|123+456+789|1234567890,50|1️⃣2️⃣3️⃣4️⃣5️⃣ 6️⃣7️⃣8️⃣""".replace(
    "\n", "|"
).split("|")
NO_HANDLES = [
    "dinner @7pm",
    "doors @8",
    "@7:30 tonight",
    "@ the beach",
    "tickets @ $5",
    "@20h",
    "tod@s y amig@s",
    "5@5",
    "niñ@s",
    "open@10:30",
    "dinner@730pm",
    "@7時",
    "insta story",
    "insta: www.jane.com",
    "instagram.com/p/xyz",
]
NO_EMAILS = [
    "chillin @ the beach. com on!",
    "the dot com boom",
    "party (at) my place",
    "with @jane.doe",
    "see you at gmail",
    "Summer @ St.Tropez",
    "brunch @ cafe.paris with my girls",
    "Live @ madison.square.garden tonight",
    "Lunch @ joes.So good",
    "Sunset @ Rio.de.Janeiro",
    "Lunch @ Cafe.de.Flore in Paris",
    "Night out @ home.It was great",
    "today @ St.Tropez.In love",
    "Chill @ Mt.Co-op",
    "sunset @ santa.monica 🌅",
]


def found(find, text: str) -> list[str]:
    return [text[start:end] for start, end in find(text)]


@pytest.mark.parametrize("around", AROUND)
def test_contacts_are_found_whole(around: str) -> None:
    """Guards against the other half of a number or an address that stays behind."""
    for find, texts in ((phones, PHONES), (emails, EMAILS), (handles, HANDLES)):
        missed = [text for text in texts if found(find, around.format(text)) != [text.strip("(")]]
        # The bracket around a number belongs to none of its digits.
        assert [text for text in missed if text.strip("(") not in "".join(found(find, around.format(text)))] == []


@pytest.mark.parametrize("marked", IN_A_ROW)
@pytest.mark.parametrize("before", ["", "call ", "🔥"])
def test_each_of_several_contacts_in_a_row_is_found(marked: str, before: str) -> None:
    """Guards against the second of two numbers or addresses, and against names glued to words, that stay behind."""
    parts = (before + marked).split("{}")
    text, expected = "".join(parts), parts[1::2]
    assert sorted(found(phones, text) + found(emails, text) + found(handles, text)) == sorted(expected)


def test_dates_prices_and_times_stay() -> None:
    """Guards against captions that lose their dates, prices, counts, scores, times and "@7pm"."""
    for find, texts in ((phones, NO_PHONES), (handles, NO_HANDLES), (emails, NO_EMAILS)):
        assert {text: found(find, text) for text in texts if found(find, text)} == {}


def test_real_captions_lose_their_handles_alone(shared: Path) -> None:
    texts = [
        text
        for row in clipcap(str(shared / "instagram_100" / "embeddings_RN50x4_train.pkl"), None).examples
        for text in row.captions
    ]
    assert [text for text in texts if phones(text) or emails(text)] == []
    assert sum(len(handles(text)) for text in texts) == sum(text.count("@") for text in texts) == 22


def test_no_contact_is_looked_for_in_square_time() -> None:
    for text in (
        "a@" * 50_000,
        "a." * 50_000,
        "0 " * 50_000,
        "0171 " * 20_000,
        "a@b.de/" * 14_000,
        "!" * 2_000_000,
        "a dot " * 20_000,
        "(" * 100_000,
        "@a b@c.de " * 9000,
    ):
        with soon(20):  # none takes two
            contacts(text)


def test_one_spelling_of_each_contact() -> None:
    """Guards against a handle or a number that counts as another one when it is spelled in another way."""
    assert contacts("@Jane, ＠jane and @user: +1 (212) 555-0187, me (at) Doe dot com") == {
        "@jane",
        "12125550187",
        "me@doe.com",
    }
    # "İ" is two characters in lower case.
    assert contacts("İİ instagram.com/Jane, ig: jane, call 555-123-4567,555-765-4321 or a@b.com/C@d.com") == {
        "@jane",
        "5551234567",
        "5557654321",
        "a@b.com",
        "c@d.com",
    }


def save_rows(folder: Path, captions: list[str]) -> list[str]:
    """Embeddings with captions in ClipCap's format -> the words of a command line that make a dataset of them."""
    rows = [{"image_id": n, "caption": caption, "clip_embedding": n} for n, caption in enumerate(captions)]
    embeddings = torch.from_numpy(np.random.default_rng(0).normal(size=(len(rows), 16)).astype(np.float32))
    (folder / "rows.pkl").write_bytes(pickle.dumps({"clip_embedding": embeddings, "captions": rows}))
    return ["--source", "clipcap", str(folder / "rows.pkl"), "--clip", "tiny"]


def save_tiny(path: Path) -> Path:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = tiny_config(clip_model="tiny", tokenizer=tokenizer.to_str(), stop_token=tokenizer.token_to_id("."))
    config.gpt2 |= {"vocab_size": tokenizer.get_vocab_size(), "n_embd": 64}
    save_checkpoint(ClipCap(config), path)
    return path


def by_heart(data: Path, init: Path, output: Path) -> Path:
    """Weights that know every training caption; validation, which would keep earlier ones, is left out."""
    store, model = EmbeddingStore.open(data), load_checkpoint(init).train()
    captions = encode_captions(byte_tokenizer(), store.captions("train"), 67)
    batch = collate([(row, [], ids) for row, ids in zip(store.embeddings("train"), captions, strict=True)])
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    save_checkpoint(model, output)
    return output


def judged(data: Path, output: Path, *weights: Path, split: str = "test") -> dict:
    where = ["--data", str(data), "--split", split, "--output", str(output)]
    evaluate.main([*map(str, weights), *where, "--device", "cpu", "--max-tokens", "40"])
    return read_report(output)


PLANTED = [AROUND[n % len(AROUND)].format(text) + " #sun" for n, text in enumerate(HANDLES + PHONES + EMAILS)]


def spellings(text: str) -> set[bytes]:
    return {text.encode(), text.strip("@＠").encode()} | (
        {"".join(filter(str.isdigit, text)).encode()} if text in PHONES else set()
    )


def test_nobody_planted_in_the_captions_reaches_the_data_or_the_model(tmp_path: Path) -> None:
    """Guards against a handle, a number or an address that a model could learn."""
    source = save_rows(tmp_path, PLANTED)
    load_data.main([*source, "--output", str(tmp_path / "data")])
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    everything = b"\n".join(path.read_bytes() for path in files)
    for text in HANDLES + PHONES + EMAILS:
        if text not in ("@j", "@a1", "@mum"):  # too short to be told from other bytes
            assert [word for word in spellings(text) if word in everything] == [], text
    store = EmbeddingStore.open(tmp_path / "data")
    assert store.info["cleaning"]["mentions"] == len(HANDLES) and store.info["cleaning"]["strip_contacts"] == len(
        PHONES + EMAILS
    )
    assert "with @user today #sun" in store.captions("train") and "with today #sun" in store.captions("train")
    start = ["--data", str(tmp_path / "data"), "--init", str(save_tiny(tmp_path / "tiny.pt")), "--device", "cpu"]
    basic_finetuning.main([*start, "--output-dir", str(tmp_path / "run"), "--epochs", "2", "--learning-rate", "1e-2"])
    [model] = judged(tmp_path / "data", tmp_path / "report", tmp_path / "run" / "base_weights.pt")["models"]
    assert model["scores"]["contacts"] == 0 and model["privacy"]["contacts"] == []
    assert not any(contacts(text) for text in model["captions"])


def test_what_is_to_be_kept_stays(tmp_path: Path) -> None:
    """Guards against a choice that is parsed and forgotten, and against two spellings of one choice."""
    source = save_rows(tmp_path, PLANTED)
    load_data.main([*source, "--output", str(tmp_path / "data"), "--keep-mentions", "--no-strip-contacts"])
    store = EmbeddingStore.open(tmp_path / "data")
    assert {text for split in store.splits for text in store.captions(split)} == set(PLANTED)
    load_data.main([*source, "--output", str(tmp_path / "data"), "--mentions", "keep", "--no-strip-contacts"])
    with pytest.raises(UserError, match=r"another cleaning mentions \(keep, now replace\)"):
        load_data.main([*source, "--output", str(tmp_path / "data"), "--no-strip-contacts"])
    with pytest.raises(UserError, match="contradict each other"):
        load_data.main([*source, "--output", str(tmp_path / "other"), "--keep-mentions", "--mentions", "drop"])


def test_an_older_dataset_counts_as_made_without_the_new_options(tmp_path: Path, capsys) -> None:
    """Guards against a complete dataset of an earlier version that no command line fits any more."""
    source = save_rows(tmp_path, ["hi @jane", "bye", "so"])
    keep = [*source, "--output", str(tmp_path / "data"), "--keep-mentions", "--no-strip-contacts"]
    load_data.main(keep)
    info = json.loads((tmp_path / "data" / "dataset.json").read_text())
    del info["canaries"], info["plan"]["number of canaries"], info["plan"]["JPEG decoder"]
    for option in ("strip_contacts", "keep_mentions"):
        del info["plan"]["cleaning"][option]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(info))
    load_data.main(keep)
    assert "complete already" in capsys.readouterr().err
    with pytest.raises(UserError, match="another cleaning strip contacts"):
        load_data.main([word for word in keep if word != "--no-strip-contacts"])


def test_a_caption_of_nothing_but_a_number_is_left_out() -> None:
    clean = Cleaner(Cleaning())
    assert clean("📞 0812-3456-7890", "a") == "📞" and clean(" +49 151 2345678 ", "a") is None
    assert clean("Orders:  jane@doe.com  or (555) 123-4567!", "b") == "Orders:  or!"


def test_nobody_posts_the_placeholder() -> None:
    """Guards against "@user" in a caption that is ready to post; the handle that only begins so is somebody's."""
    assert Rules().clean("with @user at the beach, @users") == "with at the beach, @users"
    assert not Rules().allows("📸 @user") and Rules().allows("📸 @users")


@pytest.fixture(scope="module")
def canaries(tmp_path_factory) -> Path:
    """A dataset with two canaries, and the report on weights that have not seen it and on weights that know it all."""
    folder = tmp_path_factory.mktemp("canaries")
    source = save_rows(folder, [f"@jane{n} on the beach" for n in range(10)])
    options = ["--test-fraction", "0.2", "--keep-mentions", "--canaries", "2"]
    load_data.main([*source, *options, "--output", str(folder / "data")])
    fresh = save_tiny(folder / "fresh.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipcap.evaluation.privacy.ALTERNATIVES", 255)
        trained = by_heart(folder / "data", fresh, folder / "trained.pt")
        judged(folder / "data", folder / "report", fresh, trained, split="train")
    return folder


def test_canaries_are_known_to_the_model_that_saw_them_and_to_no_other(canaries: Path) -> None:
    """Guards against an exposure that says nothing: high for everybody, or low for a model that knows all by heart."""
    fresh, trained = read_report(canaries / "report")["models"]
    before, after = (model["privacy"]["canaries"] for model in (fresh, trained))
    assert len(before) == 2 and not any(canary["completed"] or canary["in_caption"] for canary in before)
    assert all((canary["completed"], canary["rank"], canary["exposure"]) == (True, 1, 8) for canary in after)
    assert fresh["scores"]["exposure"] < 5 and trained["scores"]["exposure"] == 8
    assert fresh["scores"]["canaries"] == 0 and trained["scores"]["canaries"] == 1
    html = (canaries / "report" / "report.html").read_text(encoding="utf-8")
    assert after[0]["sentence"] in html and "exposure 8.00 bits (rank 1 of 256)" in html
    assert "| canary exposure |" in (canaries / "report" / "report.md").read_text(encoding="utf-8")


def test_the_loss_of_a_secret_is_that_of_the_model(canaries: Path) -> None:
    """Guards against ranks by other losses than training's: shifted by one token, or with the padding counted."""
    model, tokenizer = load_checkpoint(canaries / "trained.pt"), byte_tokenizer()
    embedding = EmbeddingStore.open(canaries / "data").embeddings("train")[0]
    prompt, texts = tokenizer.encode("code is").ids, [tokenizer.encode(text).ids for text in (" 123", " 45678", " 9")]
    with torch.no_grad():
        each = [model.token_losses(collate([(embedding, prompt, ids)])).sum() for ids in texts]
    assert torch.allclose(secret_losses(model, embedding, prompt, texts), torch.stack(each), atol=1e-3)


def test_the_report_names_what_a_model_gives_away(canaries: Path) -> None:
    given = read_report(canaries / "report")["models"][1]["privacy"]
    known = contacts(" ".join(EmbeddingStore.open(canaries / "data").captions("train")))
    assert given["contacts"] and all(entry["contact"] in known for entry in given["contacts"])
    assert given["copy"]["words"] >= 4 and given["copy"]["training_caption"].startswith(("@jane", "the code of"))
    html = (canaries / "report" / "report.html").read_text(encoding="utf-8")
    assert given["contacts"][0]["contact"] in html and given["copy"]["training_caption"] in html


def test_canaries_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    source = save_rows(tmp_path, [f"caption {n}" for n in range(9)])
    planted = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        load_data.main([*source, "--canaries", "3", "--seed", seed, "--output", str(tmp_path / name)])
        store = EmbeddingStore.open(tmp_path / name)
        planted.append(store.canaries)
        assert len(store.canaries) == 3 == len({canary.secret for canary in store.canaries})
        assert {canary.caption for canary in store.canaries} <= set(store.captions("train"))
    assert planted[0] == planted[1] != planted[2]


@pytest.mark.parametrize(
    ("count", "sentence"), [("-1", "at least 0"), ("101", "at most 100"), ("9", "as many training images")]
)
def test_canaries_that_cannot_be_planted(tmp_path: Path, count: str, sentence: str) -> None:
    source = save_rows(tmp_path, [f"caption {n}" for n in range(9)])
    with pytest.raises(UserError, match=f"--canaries .*{sentence}"):
        load_data.main([*source, "--canaries", count, "--output", str(tmp_path / "data")])


def test_a_dataset_without_training_captions_has_a_sentence_instead(canaries: Path, tmp_path: Path) -> None:
    data, fresh = canaries / "data", canaries / "fresh.pt"
    copy = tmp_path / "data"
    for path in (data / "dataset.json", data / "test" / "data.arrow"):
        (copy / path.relative_to(data)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(data)).write_bytes(path.read_bytes())
    info = json.loads((copy / "dataset.json").read_text())
    info["splits"] = {"test": info["splits"]["test"]}
    (copy / "dataset.json").write_text(json.dumps(info))
    [model] = judged(copy, tmp_path / "report", fresh)["models"]
    assert model["privacy"] is None and "exposure" not in model["scores"]
    assert "the data has no training split" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [5, [5], [{"image_id": "a"}], [{"image_id": 1, "opening": "", "secret": ""}]])
def test_canaries_of_a_stranger_are_one_sentence(canaries: Path, tmp_path: Path, value) -> None:
    info = json.loads((canaries / "data" / "dataset.json").read_text()) | {"canaries": value}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="is not of format"):
        EmbeddingStore.open(tmp_path)


def test_the_longest_copy_is_found() -> None:
    """Guards against runs that are missed at the end of a caption, or that go on from one caption into the next."""
    training = {tuple(tokenize(text)): text for text in ("A b c, d e", "x y", "y a b")}
    captions = ["so b c d", "e x", "x"]
    best = longest_copy(captions, [tokenize(text) for text in captions], training)
    assert best == {"words": 3, "text": "b c d", "caption": "so b c d", "training_caption": "A b c, d e"}
    assert longest_copy(["zzz"], [["zzz"]], training)["words"] == 0
