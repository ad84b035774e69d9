"""The verb replay."""

from typing import TYPE_CHECKING

from hardpatch.cli.arguments import Parser, json_argument, show_json

if TYPE_CHECKING:
    from hardpatch.pretrain.replay import ReplayResult

SHOWN = 3
"""Parameters that are named."""


def replay(arguments: list[str]) -> int:
    """Run ``hardpatch replay`` and return the exit code: 1 if the step is finite this time."""
    parser = Parser(
        "replay",
        "Compute a step of hardpatch pretrain again whose loss or gradient was NaN or infinite, from its dump, and "
        "name the first module that makes it. Exit code 1 if it does not come again.",
    )
    parser.add_argument("dump", metavar="DUMP", help="folder RUN/dumps/step_*")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="precision (default: that of the training)"
    )
    json_argument(parser)
    options = parser.parse_args(arguments)

    from hardpatch.pretrain.replay import replay
    from hardpatch.train.log import show_log

    show_log()
    result = replay(options.dump, device=options.device, precision=options.precision)
    if not show_json(options.json, result.to_dict()):
        print("\n".join(lines(result)))
    return 0 if result.reproduced else 1


def lines(result: "ReplayResult") -> list[str]:
    """Describe the result of a replay."""
    parts = "  ".join(f"{name} {value:.6g}" for name, value in result.parts.items())
    told = [f"step {result.step}, batch of process {result.rank}, on {result.device} in {result.precision}"]
    told.append(f"loss {result.loss:.6g}  {parts}")
    if result.gradients_not_finite:
        named = ", ".join(result.gradients_not_finite[:SHOWN])
        told.append(f"gradients that are NaN or infinite: {len(result.gradients_not_finite)} parameters: {named}, ...")
    if result.weights_not_finite:
        told.append(f"weights that are NaN or infinite: {', '.join(result.weights_not_finite[:SHOWN])}")
    if not result.reproduced:
        told.append("not reproduced: loss and gradients are finite this time")
        told += [f"  differs  {line}" for line in result.differences or ["nothing known"]]
        return told
    told += _of_culprit(result)
    return told + [f"differs  {line}" for line in result.differences]


def _of_culprit(result: "ReplayResult") -> list[str]:
    culprit = result.culprit
    if culprit is None and result.entered is not None:
        return [f"no module made it from finite values: the input of {result.entered} was NaN or infinite already"]
    if culprit is None:
        return ["no module made it from finite values"]
    what = "output" if culprit.during == "forward" else "gradient of its input"
    if culprit.parameter is not None:
        what = f"gradient of its {culprit.parameter}"
    told = [f"first module: {culprit.module} ({culprit.kind}), {culprit.during} pass: its {what} is NaN or infinite"]
    given = "input" if culprit.during == "forward" else "gradient of its output"
    told += [f"  {given}  {part}" for part in culprit.inputs]
    told += [f"  {what}  {part}" for part in culprit.outputs]
    if result.norm is not None:
        told.append(f"  norm of its weights  {result.norm:.4g}")
    if result.largest:
        told.append("  largest values  " + ", ".join(f"{name} ({size:.4g})" for name, size in result.largest))
    return told
