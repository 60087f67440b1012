"""What the `train_gpt.py` of a submission runs: score the artifacts beside it, or train again.

Unlike a command of tokgolf's it is told its protocol and configuration by the script, and it uses
nothing of the command line's libraries: all of its code counts. Scoring imports no training.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokgolf.artifact.load import load_artifact
from tokgolf.corpora import open_corpus, read_shard, shard_files
from tokgolf.device import resolve_device
from tokgolf.errors import CapError, ConfigError, ScoreError, TokgolfError
from tokgolf.eval.rescore import Rescored, rescore, rescore_shards
from tokgolf.tokenizers.engines import ENGINE_VARIABLE, ENGINES

Print = Callable[[str], None]


def main(settings: Mapping[str, Any], script: str, arguments: list[str]) -> int:
    """Run the script at the path `script`; the exit code is 1 after an error, told in one line.

    `settings` has "protocol", "corpus" (a name, or None), "sha256" of the text, "cap" on all
    bytes, and, where training is packed too, "run", the "quantizer" and the "export_cap".
    """
    # The one whose code is packed; another gives the same ids.
    os.environ[ENGINE_VARIABLE] = ENGINES[-1]
    options = _parser(settings).parse_args(arguments)
    beside = Path(script).resolve().parent
    try:
        if options.train is None:
            paths = options.artifacts or sorted(beside.glob("*.golf"))
            if not paths:
                raise ConfigError(f"there is no .golf file in {beside}; name one")
            for path in paths:
                _score(settings, options, path, script)
        else:
            _train(settings, options, beside, script)
    except (TokgolfError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _parser(settings: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Score the artifacts beside this script, or train such a one again.",
        epilog="Example: python train_gpt.py --text val.jsonl",
    )
    add = parser.add_argument
    add("artifacts", nargs="*", type=Path, metavar="ARTIFACT", help="default: all *.golf beside")
    add("--text", default=settings["corpus"], help="documents: .jsonl, .txt, .parquet (.zst) ...")
    add("--shards", type=Path, help="val token shards of the artifact's tokenizer, or a folder")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--json", action="store_true", help="one JSON object for each artifact")
    parser.set_defaults(train=None)
    if "run" in settings:
        add("--train", metavar="DOCUMENTS", help="train on these, export, and score --text")
        add("--seed", type=int, default=settings["run"]["seed"])
        add("-o", "--output", type=Path, default=Path("run"), help="run directory (default: run)")
    return parser


def _score(
    settings: Mapping[str, Any], options: argparse.Namespace, path: Path, script: str
) -> None:
    artifact = load_artifact(path)
    protocol, device = settings["protocol"], resolve_device(options.device)
    if options.shards is not None:
        found = rescore_shards(artifact, _tokens(options.shards), protocol, device=device)
    elif options.text is None:
        raise ConfigError("there is nothing to score; add --text FILE or --shards FOLDER")
    else:
        corpus = open_corpus(options.text)
        found = rescore(artifact, (each.data for each in corpus), protocol, device=device)
    code = Path(script).stat().st_size
    if options.json:
        sizes = {"bytes_model": len(artifact.data), "bytes_code": code, "bytes_total": 0}
        sizes["bytes_total"] = sizes["bytes_model"] + code
        print(json.dumps({"artifact": path.name, **found._asdict(), **sizes}))
        return
    print("\n".join(report(path.name, found, settings["sha256"], len(artifact.data), code)))


def _tokens(path: Path) -> Any:
    files = [path]
    if path.is_dir():
        files = shard_files(path, "fineweb_val") or shard_files(path, "val")
    if not files:
        raise ScoreError(f"{path} holds no fineweb_val_*.bin or val_*.bin; name a shard")
    return np.concatenate([read_shard(file) for file in files])


def report(name: str, found: Rescored, text: str, model: int, code: int) -> list[str]:
    """The lines of a log about one artifact; `text` is the hash of the text of the claim."""
    same = {None: "shards", text: "the claim's"}.get(found.sha256, "not the claim's")
    return [
        f"artifact:{name}",
        f"val_loader documents:{found.documents} bytes:{found.bytes} tokens:{found.tokens} "
        f"text:{same}",
        f"Serialized model: {model} bytes",
        f"Code size: {code} bytes",
        f"Total submission size: {model + code} bytes",
        f"final_roundtrip_exact val_loss:{found.val_loss!r} val_bpb:{found.val_bpb!r}",
    ]


def _train(
    settings: Mapping[str, Any], options: argparse.Namespace, beside: Path, script: str
) -> None:
    """Train with the tokenizer beside the script, export under the same cap, score."""
    from tokgolf.artifact.export import export_run
    from tokgolf.config import from_dict
    from tokgolf.quantize.rows import QuantConfig
    from tokgolf.tokenizers import load_tokenizer
    from tokgolf.training import RunConfig, StepReport, train

    def on_step(step: StepReport) -> None:
        if step.step % 10 == 0 or step.step <= 3:
            milliseconds = 1000 * step.seconds
            print(
                f"step:{step.step} train_loss:{step.loss:.4f} train_time:{milliseconds:.0f}ms "
                f"step_avg:{milliseconds / step.step:.2f}ms",
                flush=True,
            )

    run_config = from_dict(RunConfig, {**settings["run"], "seed": options.seed}, "run")
    held_out = None if options.text is None else open_corpus(options.text)
    train(
        run_config,
        load_tokenizer(beside / "tokenizer.tok"),
        open_corpus(options.train),
        options.output,
        held_out=held_out,
        device=options.device,
        on_step=on_step,
        say=print,
    )
    path = options.output / "model.golf"
    device = resolve_device(options.device)
    config = from_dict(QuantConfig, settings["quantizer"], "quantizer")
    cap = settings["export_cap"]
    export_run(options.output, path, cap=cap, config=config, device=device, say=print)
    total = path.stat().st_size + Path(script).stat().st_size
    if total > settings["cap"]:
        raise CapError(f"script and artifact have {total:,} bytes, the cap is {settings['cap']:,}")
    if options.text is not None or options.shards is not None:
        _score(settings, options, path, script)
