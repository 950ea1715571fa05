"""The command line: LightningCLI with our defaults."""

import warnings
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import tasks.arrow  # makes the short names ArrowData, ... known to the command line
import tasks.text
import tasks.tu  # noqa: F401
from tasks.runs import SaveResolvedConfig, finish_wandb

DEFAULTS = Path(__file__).parent.parent / "configs" / "trainer" / "default.yaml"
SUBCOMMANDS = ("fit", "validate", "test", "predict")
LINKED = ("in_dim", "out_dim", "net_args")  # sizes the data knows and the net needs


class CLI(LightningCLI):
    """Hands the sizes of the data to the model, so that a config names them nowhere."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key in LINKED:
            parser.link_arguments(f"data.{key}", f"model.init_args.{key}", apply_on="instantiate")


def main(args: list[str] | None = None, run: bool = True) -> CLI:
    """Run a command line (that of the process if None) and return its trainer, model and data.

    Args:
        args: For example ["fit", "--config", "configs/quickstart.yaml"].
        run: Run the subcommand; otherwise only build, with no subcommand in `args`.
    """
    finish_wandb()
    usage = "train.py {} --config FILE [--model.net.KEY V] [--data.KEY V] [--trainer.KEY V]"
    options = {"default_config_files": [str(DEFAULTS)]}
    # Lightning asks PyTorch 2.13 in a way that works and that PyTorch calls old.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    per_command = {c: {**options, "usage": usage.format(c)} for c in SUBCOMMANDS}
    return CLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveResolvedConfig,
        save_config_kwargs={"save_to_log_dir": False},
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=args,
        run=run,
        parser_kwargs=per_command if run else options,
    )
