"""Examples at the end of the help of every verb. A test runs each of them as it is printed."""

EXAMPLES = {
    "pretrain": (
        "hardpatch pretrain --data my_images --hours 2 --out runs/mine",
        "hardpatch pretrain --resume --out runs/mine",
    ),
    "plan": (
        "hardpatch plan my_images --hours 2",
        "hardpatch plan my_images --recipe cifar10_tiny",
    ),
    "tokenizer": (
        "hardpatch tokenizer --data my_images --out runs/tokenizer",
        "hardpatch tokenizer --resume --out runs/tokenizer",
    ),
    "knn": (
        "hardpatch knn runs/mine --train labeled/train --val labeled/val",
        "hardpatch knn runs/mine --train labeled/train --val labeled/val --k 5 10",
    ),
    "linear": (
        "hardpatch linear runs/mine --train labeled/train --val labeled/val",
        "hardpatch linear runs/mine --train labeled/train --val labeled/val --lr 0.1",
    ),
    "linear --protocol paper": (
        "hardpatch linear runs/mine --protocol paper --train labeled/train \\\n"
        "      --val labeled/val --out runs/probe",
        "hardpatch linear --protocol paper --resume --out runs/probe",
    ),
    "embed": (
        "hardpatch embed runs/mine my_images --out vectors.parquet",
        "hardpatch embed runs/mine my_images --normalize --out search.parquet",
    ),
    "finetune": (
        "hardpatch finetune runs/mine --train labeled/train --val labeled/val \\\n      --out runs/classifier",
        "hardpatch finetune runs/mine --train labeled/train --val labeled/val \\\n      --probe_only --out runs/linear",
    ),
    "segment": (
        "hardpatch segment runs/mine --train maps/train --val maps/val \\\n      --out runs/segmenter",
        "hardpatch segment --resume --out runs/segmenter",
    ),
    "detect": (
        "hardpatch detect runs/mine --train objects/train \\\n"
        "      --annotations objects/train.json --val objects/val \\\n"
        "      --val_annotations objects/val.json --out runs/detector",
        "hardpatch detect --resume --out runs/detector",
    ),
    "rank": (
        "hardpatch rank runs/mine my_images --out ranking",
        "hardpatch rank runs/mine my_images --draws 20 --out ranking_20",
    ),
    "anomalies": (
        "hardpatch anomalies runs/mine my_images --train normal --out defects",
        "hardpatch anomalies runs/mine my_images --train normal \\\n      --pictures 4 --out defects_4",
    ),
    "report": (
        "hardpatch report runs/mine --out mine.html",
        "hardpatch report runs/mine runs/classifier --out both.html",
    ),
    "predict": (
        "hardpatch predict runs/classifier my_images --out classes.csv",
        "hardpatch predict runs/segmenter my_images --out maps_of_mine",
    ),
    "evaluate": (
        "hardpatch evaluate runs/mine --suite suite.yaml --out evaluation",
        "hardpatch evaluate runs/mine --suite suite.yaml --out evaluation \\\n      --json table.json",
    ),
    "score": (
        "hardpatch score runs/mine my_images --out pictures",
        "hardpatch score runs/mine my_images --pictures 8 --draws 2 --out few_pictures",
    ),
    "view": (
        "hardpatch view runs/mine",
        "hardpatch view runs/mine runs/mine --set my_images --port 7870",
    ),
    "check": (
        "hardpatch check my_images",
        "hardpatch check labeled/train --labels",
    ),
    "stats": (
        "hardpatch stats my_images",
        "hardpatch stats my_images --json",
    ),
    "shrink": (
        "hardpatch shrink my_images --out small_images",
        "hardpatch shrink my_images --side 128 --out smaller_images",
    ),
    "shard": (
        "hardpatch shard my_images --out shards",
        "hardpatch shard my_images --side 256 --encode jpeg --out small_shards",
    ),
    "bench": (
        "hardpatch bench --contenders hpm,mae",
        "hardpatch bench --recipe demo --contenders hpm,mae,hpm_fast",
    ),
    "bench data": (
        "hardpatch bench data --data my_images",
        "hardpatch bench data --data my_images --workers 0 1 --image_size 96",
    ),
    "study": (
        "hardpatch study plan table4 --scale cpu --data my_images --val labeled/val",
        "hardpatch study table4 --data my_images --val labeled/val --out studies",
    ),
    "export": (
        "hardpatch export runs/mine --to timm --out vit",
        "hardpatch export runs/mine --to hf --out vit_for_transformers",
    ),
    "replay": (
        "hardpatch replay runs/nan/dumps/step_00000003",
        "hardpatch replay runs/nan/dumps/step_00000003 --json replay.json",
    ),
    "info": (
        "hardpatch info runs/mine",
        "hardpatch info vit_for_transformers",
    ),
    "recipes": (
        "hardpatch recipes demo",
        "hardpatch recipes imagenet_base_200",
    ),
    "formats": (
        "hardpatch formats",
        "hardpatch formats --json formats.json",
    ),
} | {
    f"study {figure}": (
        f"hardpatch study {figure} runs/mine my_images --out {figure}",
        f"hardpatch study {figure} runs/mine my_images --count 6 --out {figure}_of_six",
    )
    for figure in ("fig2", "fig4", "figS1", "figS2")
}
"""Command lines by verb. ``runs/mine`` and the like stand for one's own."""
