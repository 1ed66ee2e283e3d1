"""Small data sets, saved as users' files are."""

from pathlib import Path


def save_hub_folder(folder: Path, splits: dict[str, list[str]], image: bytes) -> Path:
    """The layout of the Instagram data set on the hub. Image "11" is broken, "12" has no caption."""
    from datasets import Dataset, Features, Image, Value

    text = Value("string")
    features = Features(image=Image(), item_id=text, image_path=text, caption=text)
    (folder / "data").mkdir(parents=True)
    for split, ids in splits.items():
        rows = {
            "image": [{"bytes": image if i != "11" else b"broken", "path": f"{i}.png"} for i in ids],
            "item_id": ids,
            "image_path": [f"images/{i}.png" for i in ids],
            "caption": [f"caption {i}" if i != "12" else None for i in ids],
        }
        Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder
