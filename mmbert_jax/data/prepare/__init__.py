"""Text to a corpus: `prepare_corpus`, in stages of which each is a loop over independent jobs for a pool of processes.

1. Chunks of the input are tokenised; the tokens wait in one spill file for each (split, language) (tokenise.py). Of a
   language that has hardly any held-out documents then, the ones with the lowest hashes are held out besides
   (hold_out.py).
2. Shards are packed: one shard takes several small languages, or a part, dealt out by hash, of a large one (deal.py,
   pack.py). A document's hash decides its split and its place among the others, so that the corpus is the same whatever
   the number of processes, and equal texts are on the same side of the split.

Memory: a chunk or two for each process in stage 1 and the spill's buffer; in stage 2 the tokens of one part of a shard
for each process. On the disk the spill takes 4 bytes a token until the corpus is complete.
"""

from mmbert_jax.data.prepare.output import check_output
from mmbert_jax.data.prepare.run import prepare_corpus
from mmbert_jax.data.prepare.settings import Settings

__all__ = ["Settings", "check_output", "prepare_corpus"]
