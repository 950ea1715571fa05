"""The command line: LightningCLI with our defaults."""

import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

import tasks.arrow  # makes the short names ArrowData, ... known to the command line
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

Arguments after --config override it. --debug shows the stack of an error."""
SUBCOMMANDS = {
    "fit": "Train a net.",
    "validate": "Loss and metrics of a trained net on the validation sets.",
    "test": "Loss and metrics of a trained net on the test sets.",
    "predict": "What a trained net predicts for the test sets, and pictures: gates, confusion, ...",
}
CLASS_HELP = """

Classes have help of their own, for example --data.help TUData, --model.help LanguageModel
and, after --config FILE, --model.net.help plstm.VisionModel.
--print_config shows every value, --debug the stack of an error."""
LINKED = ("in_dim", "out_dim", "net_args")  # sizes the data knows and the net needs


class CLI(LightningCLI):
    """Hands the sizes of the data to the model, so that a config names them nowhere; resumes runs.

    The configuration that is saved is that of a new run: it names no run to resume.
    """

    resumed: resume.Resumed | None = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        with ExitStack() as self.held:  # the lock of a run's folder, while the command runs
            super().__init__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, object]) -> "CLI":
        """Itself: the copy of a model, as averaged weights need one, was made by it as well."""
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
            help="Whether a run keeps best.ckpt, stops if its numbers are no longer finite, logs "
            "gradient norm and speed, draws pictures and saves predictions, beside the callbacks "
            "of the trainer.",
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
            if action.dest == "ckpt_path":  # Lightning describes names that only its own loops know
                action.help = "File with the weights, for example RUN/checkpoints/best.ckpt."
        return parser

    def _parse_ckpt_path(self) -> None:
        """Look at the checkpoint before anything is built, and say so if there is none.

        Lightning would change the model by it; but what the model is stands in the config.
        """
        command = self.config.get("subcommand")
        path = self.config[command].ckpt_path if command else None
        if path is not None and self.config[command].get("resume"):
            return  # refused when that run is looked for
        if path is None and command not in (None, "fit"):
            rank_zero_info("No --ckpt_path: the weights are those of a new net.")
        elif path is not None and "://" not in str(path):
            self._take_arguments(read_checkpoint(path).get("data_arguments", {}))

    def _take_arguments(self, arguments: dict[str, object]) -> None:
        """Give the data what the net of a checkpoint asks of them, such as its alphabet."""
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
        """Add our callbacks to those of a config, which cannot remove them by naming others."""
        own = config["callbacks"] or []
        own = own if isinstance(own, list) else [own]
        standard = [StopIfNotFinite(), Monitor(), Pictures(), SavePredictions()]
        if not self._get(self.config_init, "standard_callbacks"):
            standard, callbacks = [], _without(callbacks, BestCheckpoint)
        if config["limit_val_batches"] == 0:  # nothing is better than anything
            callbacks = _without(callbacks, BestCheckpoint)
        if config["logger"] in (False, []) and config["default_root_dir"] is None:
            callbacks = _without(callbacks, Checkpoint)
            if own == _without(own, Checkpoint):
                config["enable_checkpointing"] = False  # Lightning would save in the working folder
        if config["enable_checkpointing"] is False:  # with which Lightning refuses checkpoints
            callbacks, own = _without(callbacks, Checkpoint), _without(own, Checkpoint)
        config["callbacks"], callbacks = [], [*standard, *callbacks, *own]
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except TypeError as error:  # Lightning's word for devices that an accelerator cannot have
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
        """Prepare the folder of a run, and the checkpoint it goes on from."""
        resume.prepare(self.trainer, self.datamodule, self.resumed, self.held)
        if self.resumed is not None and self.resumed.checkpoint is not None:
            self.config_init.fit.ckpt_path = str(self.resumed.checkpoint)


def _without(callbacks: list[Callback], kind: type[Callback]) -> list[Callback]:
    return [callback for callback in callbacks if not isinstance(callback, kind)]


def main(args: list[str] | None = None, run: bool = True) -> CLI | None:
    """Run a command line (that of the process if None) and return its trainer, model and data.

    The command line of `export` has none of these: see tasks.cli.export.

    Args:
        args: For example ["fit", "--config", "configs/quickstart.yaml"].
        run: Run the subcommand; otherwise only build, with no subcommand in `args`.

    Raises:
        ValueError: a config file that is no YAML, and wrong values of all kinds.
    """
    # Lightning and torch.onnx ask PyTorch 2.13 in a way that works and that PyTorch calls old.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    arguments = sys.argv[1:] if args is None else args
    if arguments[:1] == ["export"]:
        return export.main(arguments[1:])
    finish_wandb()
    check_config_files(arguments)
    options = {"default_config_files": [str(DEFAULTS)]}
    # Lightning cannot know that ours leaves nothing out.
    warnings.filterwarnings("ignore", message="You are using a custom batch sampler")
    # A checkpoint that is tested belongs to another run folder, as it should.
    warnings.filterwarnings("ignore", message="The dirpath has changed from")
    # PyTorch 2.13 calls it old; the argument that it names instead is not known to PyTorch 2.11.
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
    """Run the command line of the process; a mistake of the user is told in a line or two.

    --debug shows the whole stack instead. Class paths may name files of the working folder.

    Args:
        command: Reads sys.argv.
        name: What its messages begin with.
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
        print(f"{name}: {message}\n(--debug shows where this came from)", file=sys.stderr)
        sys.exit(2)
    finally:
        Parser.debug = False  # of this command only
