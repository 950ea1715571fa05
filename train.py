"""Train, validate, test or predict: python train.py {fit,validate,test,predict} --config FILE."""

from tasks.cli import run_process

if __name__ == "__main__":
    run_process()
