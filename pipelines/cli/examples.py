"""Examples at the end of each command's help page."""

from __future__ import annotations

import typer

EXAMPLES = {
    "init": ["cprfl init /data/birds", "cprfl init annotations.json --output birds.yaml"],
    "data": ["cprfl data configs/demo.yaml", "cprfl data birds.yaml --html birds.html"],
    "check": ["cprfl check configs/demo.yaml"],
    "run": [
        "cprfl run configs/demo.yaml",
        "cprfl run configs/demo.yaml --set train.epochs=12 --set loss.gamma_neg=2",
        "cprfl run configs/demo.yaml --again",
    ],
    "preprocess": ["cprfl preprocess birds.yaml --set data_root=s3://bucket/photos"],
    "train": ["cprfl train configs/demo.yaml --set train.validation=0.2 --set train.select=best"],
    "evaluate": ["cprfl evaluate configs/demo.yaml"],
    "benchmark": ["cprfl benchmark configs/methods/demo.yaml --methods cprfl,zero_shot --seeds 3"],
    "few-shot": ["cprfl few-shot configs/demo.yaml --novel 'red circle,blue star' --shots 1,5"],
    "tune": [
        "cprfl tune configs/demo.yaml --sweep configs/sweeps/quick.yaml",
        "cprfl tune configs/demo.yaml --sweep configs/sweeps/quick.yaml --resume",
    ],
    "retrain": ["cprfl retrain configs/demo.yaml", "cprfl retrain birds.yaml --sweep configs/sweeps/retrain.yaml"],
    "rollback": ["cprfl rollback configs/demo.yaml"],
    "ui": ["cprfl ui", "cprfl ui --output-dir /data/outputs --port 5001"],
    "submit": ["cprfl submit run birds.yaml --address http://head:8265 --set output_dir=/shared/outputs"],
    "schedule": ["cprfl schedule --schedules configs/schedules.yaml"],
    "import-published": ["cprfl import-published best.pth --config configs/coco_lt.yaml"],
    "predict": ["cprfl predict models:/demo@champion photo.jpg", "cprfl predict outputs/birds/checkpoint photos/"],
    "compare": ["cprfl compare demo birds"],
    "findings": ["cprfl findings configs/demo.yaml"],
    "next": ["cprfl next birds.yaml --pool /data/unlabelled"],
    "serve": ["cprfl serve models:/demo@champion", "cprfl serve outputs/demo --port 8001"],
    "export": ["cprfl export models:/demo@champion --format onnx"],
    "report": ["cprfl report", "cprfl report outputs/demo"],
    "jobs ls": ["cprfl jobs ls --address http://head:8265"],
    "jobs follow": ["cprfl jobs follow raysubmit_abc --address http://head:8265"],
    "jobs status": ["cprfl jobs status raysubmit_abc --address http://head:8265"],
    "jobs stop": ["cprfl jobs stop raysubmit_abc --address http://head:8265"],
    "features ls": ["cprfl features ls", "cprfl features ls --features s3://bucket/features"],
    "features verify": ["cprfl features verify"],
    "features prune": ["cprfl features prune --unused"],
}


def add_examples(app: typer.Typer, before: str = "") -> None:
    """Put its examples at the end of the help page of each command that has none there."""
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        shown = EXAMPLES.get(f"{before}{name}", [])
        if shown and not command.epilog:
            heading = "Examples:" if len(shown) > 1 else "Example:"
            command.epilog = "\n\n".join([heading, *(f"$ {one}" for one in shown)])
    for group in app.registered_groups:
        assert group.typer_instance is not None
        add_examples(group.typer_instance, f"{before}{group.name} ")
