"""One of several processes that train a list of configurations together: start-up is paid once for all of them."""

import json
import sys
from pathlib import Path

from mup_lightning.training import tune_allocator


def main(folder):
    tune_allocator()
    import torch

    from mup_lightning.config.schema import Config
    from mup_lightning.errors import UserError
    from mup_lightning.training.train import train

    torch.set_num_threads(1)
    for label, values in json.loads((folder / "jobs.json").read_text()).items():
        try:
            answer = {"checkpoint": train(Config.from_plain(values), progress=False).checkpoint}
        except UserError as error:
            answer = {"error": str(error)}
        if torch.distributed.get_rank() == 0 if torch.distributed.is_initialized() else True:
            (folder / f"{label}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
