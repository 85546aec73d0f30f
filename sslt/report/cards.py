"""The model card that lies beside an encoder."""

from __future__ import annotations

import sys
from typing import Any

from sslt.runs import Run
from sslt.scales import of_part


def model_card(run: Run, encoder: Any, cfg: Any, source: Any, metrics: dict[str, Any]) -> str:
    """What the encoder is, what it was trained on and how, how it is used, in Markdown."""
    info = run.info
    command = (run / "command.txt").read_text().splitlines()[-1] if (run / "command.txt").exists() else ""
    numbers = "\n".join(f"| {k} | {v:.4g} |" for k, v in sorted(metrics.items()) if isinstance(v, (int, float)) and not of_part(k))
    name = encoder.args.get("name") or encoder.args.get("model_type") or type(encoder).__name__
    library = _usage(encoder)
    weights = f"; weights: {metrics['encoder/is']}" if "encoder/is" in metrics else ""
    return f"""# {name}, {"fine-tuned" if info.get("verb") == "finetune" else "pretrained"} on {source.name}

{encoder.modality} encoder, {encoder.dim} features, {sum(p.numel() for p in encoder.parameters()):,} parameters{weights}.

- made by: `{command}`
- data: {source.name} (content {source.fingerprint()})
- started from: {cfg["from"] or "random weights"}, seed {cfg.seed}
- date: {info.get("started", "")}

## Use

    sslt evaluate from=FOLDER
    sslt finetune +target=NAME from=FOLDER

{library}

## Numbers at the end of training

| | |
|---|---|
{numbers}

Intended use: features and fine-tuning for data like the above. What the data lack, or hold against somebody, the encoder has learned too.
"""


def _usage(encoder: Any) -> str:
    if encoder.adapter is not None:
        where = f"over `{encoder.origin}`, which `base=` may name elsewhere" if encoder.origin else "with the weights it was made over"
        return f"An adapter ({encoder.adapter['kind']}) {where}; `sslt merge from=RUN` folds it in where that can be."
    if encoder.quantization is not None:
        kind = encoder.quantization.kind
        return f'Linear layers are kept in fewer bits ({kind}): `sslt.encoders.load.load_encoder("FOLDER")` needs `sslt[quantize]`.'
    if "model_type" in encoder.args:
        return "    transformers.AutoModel.from_pretrained(FOLDER); transformers.AutoTokenizer.from_pretrained(FOLDER)"
    image = sys.modules.get("sslt.encoders.image")  # where the encoder is one of these it is there already
    if image is None or not isinstance(encoder, image.ImageEncoder):
        return '    sslt.encoders.load.load_encoder("FOLDER")'
    if encoder.args["name"].startswith("torchvision/"):
        return "Weights: `model.safetensors`, in torchvision's names without the classifier."
    if encoder.args["stem"] != "standard":
        channels, args, (side, stride) = encoder.processor.channels, encoder.args["args"], image.STEMS[encoder.args["stem"]]
        return (
            f"The weights carry timm's names. The stem is a {side}×{side} convolution of stride {stride} without pooling, which timm's "
            "model gets by\n\n"
            f"    model = timm.create_model({encoder.args['name']!r}, num_classes=0, in_chans={channels}, **{args!r})\n"
            f"    model.conv1 = torch.nn.Conv2d({channels}, model.conv1.out_channels, {side}, {stride}, 1, bias=False)\n"
            "    model.maxpool = torch.nn.Identity()\n"
            "    model.load_state_dict(safetensors.torch.load_file('model.safetensors'))"
        )
    return '    timm.create_model("local-dir:FOLDER", pretrained=True)'
