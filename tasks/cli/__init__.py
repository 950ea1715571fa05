"""The command line: LightningCLI with the defaults of this project."""

import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

import tasks.arrow  # registers the short names ArrowData, ...
import tasks.callbacks.lr_finder
import tasks.dags
import tasks.images
import tasks.language_model
import tasks.molecules
import tasks.multi_label
import tasks.properties
import tasks.regression
import tasks.text
import tasks.tu  # noqa: F401
from tasks.callbacks.best import BestCheckpoint
from tasks.callbacks.checkpoints import LastCheckpoint
from tasks.callbacks.guard import StopIfNotFinite
from tasks.callbacks.monitor import Monitor
from tasks.callbacks.pictures import Pictures
from tasks.callbacks.predictions import SavePredictions
from tasks.checkpoint_file import read_checkpoint
from tasks.cli import export, resume
from tasks.cli.checks import check_numbers, check_processes
from tasks.cli.config_files import check_config_files
from tasks.cli.mistakes import explain_error
from tasks.cli.parser import Parser
from tasks.cli.run_lock import RunInUse
from tasks.cli.saved_config import SaveResolvedConfig
from tasks.runs import finish_wandb, remove_empty_run

DEFAULTS = Path(__file__).parents[2] / "configs" / "trainer" / "default.yaml"
USAGE = "train.py {} --config FILE [--model.net.KEY V] [--data.KEY V] [--trainer.KEY V] [--debug]"
DESCRIPTION = """Train a net, or use a trained one:

  python train.py fit --config configs/quickstart.yaml
  python train.py fit --config configs/text.yaml --data.path FILE --model.optimizer.lr 2e-3
  python train.py test --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt
  python train.py export --ckpt_path RUN/checkpoints/best.ckpt --to FOLDER

Arguments after --config override it. --debug shows the traceback of an error."""
SUBCOMMANDS = {
    "fit": "Train a net.",
    "validate": "Compute loss and metrics of a trained net on the validation sets.",
    "test": "Compute loss and metrics of a trained net on the test sets.",
    "predict": "Save predictions of a trained net on the test sets, and pictures of gates, ...",
}
CLASS_HELP = """

Classes have their own help, for example --data.help TUData, --model.help LanguageModel
and, after --config FILE, --model.net.help plstm.VisionModel.
--print_config shows every value, --debug the traceback of an error."""
LINKED = ("in_dim", "out_dim", "net_args")  # sizes from the data that the net needs


class CLI(LightningCLI):
    """Passes the sizes of the data to the model, so that configs do not contain them; resumes runs.

    The saved configuration is that of a new run, without --resume.
    """

    resumed: resume.Resumed | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        with ExitStack() as self.held:  # holds the lock of the run folder while the command runs
            super().__init__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, object]) -> "CLI":
        """Not copied: weight averaging copies the model, which refers to the CLI."""
        return self

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key in LINKED:
            parser.link_arguments(f"data.{key}", f"model.init_args.{key}", apply_on="instantiate")
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_argument(
            "--standard_callbacks",
            type=bool,
            default=True,
            help="Whether to save best.ckpt, stop if gradients are not finite, log gradient norm "
            "and speed, draw pictures and save predictions, in addition to the callbacks of the "
            "trainer.",
        )

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: object) -> None:
        super()._add_subcommands(parser, **kwargs)
        for listed in parser._subcommands_action._choices_actions:
            listed.help = SUBCOMMANDS[listed.dest]

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: object
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--resume", type=str | None, default=None, help=resume.HELP)
        for action in parser._actions:
            if action.dest == "ckpt_path":  # Lightning describes names that only its loops know
                action.help = "File with the weights, for example RUN/checkpoints/best.ckpt."
        return parser

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint before anything is built, and report if there is none.

        Lightning would change the model by it, but the config defines the model.
        """
        command = self.config.get("subcommand")
        path = self.config[command].ckpt_path if command else None
        if path is not None and self.config[command].get("resume"):
            return  # rejected when that run is searched
        if path is None and command not in (None, "fit"):
            rank_zero_info("No --ckpt_path: using newly initialized weights.")
        elif path is not None and "://" not in str(path):
            self._take_arguments(read_checkpoint(path).get("data_arguments", {}))

    def _take_arguments(self, arguments: dict[str, object]) -> None:
        """Pass arguments of the checkpoint to the data, such as its alphabet."""
        data = self.config[self.config.subcommand].data.init_args
        for key in arguments.keys() & vars(data).keys():
            data[key] = arguments[key]

    def before_instantiate_classes(self) -> None:
        check_numbers(self._get(self.config, "trainer"))

    def instantiate_classes(self) -> None:
        if self.subcommand != "fit":
            return super().instantiate_classes()
        config = self.config.fit
        folder = config.pop("resume", None)
        self.resumed = resume.find_run(self._parser("fit"), config, folder, self.held)
        loggers = config.get(resume.LOGGER)
        if self.resumed is not None:
            config[resume.LOGGER] = resume.in_folder(loggers, self.resumed)
        super().instantiate_classes()
        config[resume.LOGGER] = loggers

    def _instantiate_trainer(self, config: dict[str, object], callbacks: list[Callback]) -> Trainer:
        """Add default callbacks to those of a config, which does not replace them."""
        own = config["callbacks"] or []
        own = own if isinstance(own, list) else [own]
        standard = [StopIfNotFinite(), Monitor(), Pictures(), SavePredictions()]
        if not self._get(self.config_init, "standard_callbacks"):
            standard, callbacks = [], _without(callbacks, BestCheckpoint)
        if config["limit_val_batches"] == 0:  # without validation there is no best checkpoint
            callbacks = _without(callbacks, BestCheckpoint)
        if config["logger"] in (False, []) and config["default_root_dir"] is None:
            callbacks = _without(callbacks, Checkpoint)
            if own == _without(own, Checkpoint):
                config["enable_checkpointing"] = False  # Lightning would save in the working folder
        if config["enable_checkpointing"] is False:  # Lightning then rejects them
            callbacks, own = _without(callbacks, Checkpoint), _without(own, Checkpoint)
        config["callbacks"], callbacks = [], [*standard, *callbacks, *own]
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except TypeError as error:  # raised by Lightning for invalid devices
            raise ValueError(f"trainer: {error}") from error
        check_processes(trainer)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except RunInUse:
            raise
        except Exception:
            if subcommand == "fit" and self.resumed is None and self.trainer.global_step == 0:
                remove_empty_run(self.trainer)
            raise

    def before_fit(self) -> None:
        """Prepare the folder of a run, and the checkpoint to resume from."""
        resume.prepare(self.trainer, self.datamodule, self.resumed, self.held)
        if self.resumed is not None and self.resumed.checkpoint is not None:
            self.config_init.fit.ckpt_path = str(self.resumed.checkpoint)


def _without(callbacks: list[Callback], kind: type[Callback]) -> list[Callback]:
    return [callback for callback in callbacks if not isinstance(callback, kind)]


def main(args: list[str] | None = None, run: bool = True) -> CLI | None:
    """Run a command line (sys.argv if None) and return its trainer, model and data.

    Returns None for the command `export`, see tasks.cli.export.

    Args:
        args: For example ["fit", "--config", "configs/quickstart.yaml"].
        run: Run the subcommand; otherwise only build, with no subcommand in `args`.

    Raises:
        ValueError: a config file is not YAML, or any value is invalid.
    """
    # Lightning and torch.onnx use a function that PyTorch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    arguments = sys.argv[1:] if args is None else args
    if arguments[:1] == ["export"]:
        return export.main(arguments[1:])
    finish_wandb()
    check_config_files(arguments)
    options = {"default_config_files": [str(DEFAULTS)]}
    # Our batch sampler covers all samples, which Lightning cannot know.
    warnings.filterwarnings("ignore", message="You are using a custom batch sampler")
    # A tested checkpoint belongs to another run folder, as intended.
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # PyTorch 2.13 deprecates it; PyTorch 2.11 does not have its replacement.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    per_command = {
        name: {**options, "usage": USAGE.format(name), "description": what + CLASS_HELP}
        for name, what in SUBCOMMANDS.items()
    }
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
        parser_class=Parser,
        parser_kwargs={"description": DESCRIPTION, **per_command} if run else options,
    )


def run_process(command: Callable[[], object] = main, name: str = "train.py") -> None:
    """Run the command line; report user errors in one or two lines.

    --debug shows the traceback instead. Class paths may refer to files of the working folder.

    Args:
        command: Reads sys.argv.
        name: Start of its messages.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    Parser.debug = debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        command()
    except Exception as error:
        message = None if debug else explain_error(error)
        if message is None:
            raise
        print(f"{name}: {message}\n(--debug shows the traceback)", file=sys.stderr)
        sys.exit(2)
    finally:
        Parser.debug = False  # for this command only
