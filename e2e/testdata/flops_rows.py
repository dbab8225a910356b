"""Logs a batch of every model whose FLOPs are known, in training and in evaluation, each under its name.

The arguments are the folder of the table (client/python/tests/flops) and the groups to log. What each row must cost
goes to stdout, a JSON object a line; rows that cannot be made here as well, with the reason.
"""

import json
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, sys.argv[1])

import prov4ml
import rows
import torch

torch.set_num_threads(1)


def main() -> None:
    groups = {"torchvision": rows.TORCHVISION, "layer": rows.LAYERS, "language model": rows.LANGUAGE}
    for group in sys.argv[2:]:
        for row in groups[group]:
            line = {"group": group, "name": row.name, "forward": str(row.forward), "backward": str(row.backward)}
            try:
                model, batch = row.make(), row.batch()
            except Exception as error:
                line["skipped"] = f"{type(error).__name__}: {error}"
            else:
                prov4ml.log_flops_per_batch(row.name, model.train(), batch, prov4ml.Context.TRAINING, step=1)
                prov4ml.log_flops_per_batch(row.name, model.eval(), batch, prov4ml.Context.EVALUATION, step=1)
            print(json.dumps(line), flush=True)


main()
