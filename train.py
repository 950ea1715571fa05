"""Train, validate, test or predict: python train.py {fit,validate,test,predict} --config FILE.

python train.py export --ckpt_path FILE --to FOLDER exports a trained net.
"""

import sys

from plstm.extras import MissingExtra, extra

if __name__ == "__main__":
    try:
        with extra("train", "train.py"):
            from tasks.cli import run_process
    except MissingExtra as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    run_process()
