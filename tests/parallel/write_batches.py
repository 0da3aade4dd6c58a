"""Run by test_processes.py in each process of a job: writes what lies on this process's devices.

python write_batches.py CONFIG_JSON OUTPUT_DIR DATA,FSDP,TENSOR...
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from mmbert_jax.axes import AXES
from mmbert_jax.batches import read_batches
from mmbert_jax.data.pipeline import open_data
from mmbert_jax.optim.schedules import phase_rows
from mmbert_jax.parallel import processes
from mmbert_jax.parallel.mesh import make_mesh
from mmbert_jax.step import phase_seed
from mmbert_jax.train import flags

flags.FLAGS(sys.argv[:1])
place = (flags.FLAGS.coordinator_address, flags.FLAGS.num_processes, flags.FLAGS.process_id)
processes.join(*place, heartbeat_seconds=60)
config = ConfigDict(json.loads(Path(sys.argv[1]).read_text()))
rows = phase_rows(config.train, config.data.row_length)
data = open_data(config.data, rows, phase_seed(config))
found = {}
for number, shape in enumerate(sys.argv[3:]):
    mesh = make_mesh(dict(zip(AXES, map(int, shape.split(",")), strict=True)))
    for step, (batch, *_) in enumerate(read_batches(config, data, mesh, 0, rows)):
        for name, array in batch.items():
            for shard in array.addressable_shards:
                start, stop, _ = shard.index[1].indices(array.shape[1])
                found[f"{number} {step} {name} {start} {stop}"] = np.asarray(shard.data)
np.savez(Path(sys.argv[2]) / f"{jax.process_index()}.npz", **found)
