"""Text to a corpus: `prepare_corpus`, in stages of which each is a loop over independent jobs.

1. Pieces of the input are tokenised, each to a part: a file of documents in order of (split, language) and of their
   hashes, and its index (tokenise.py, parts.py). On request texts are rewritten and filtered before (rules.py), and all
   but the first of equal texts dropped after (duplicates.py). Of a language that has hardly any held-out documents
   then, the ones with the lowest hashes are held out besides (hold_out.py).
2. Shards are packed: one shard takes several small languages, or a share, dealt out by hash, of a large one (deal.py,
   pack.py). A document's hash decides its split and its place among the others, so that the corpus is the same whatever
   the number of processes, and equal texts are on the same side of the split.

A job reads what it needs and writes what it makes; no text goes through the process that hands them out. So the same
jobs run in a pool of processes (workers.py) or on the machines of a Ray cluster (ray_jobs.py), and what is finished
stays where a run is interrupted.

Memory: in stage 1 a piece's tokens, twice, for each process; in stage 2 the tokens of one deal. On the disk the parts
take 4 bytes a token until the corpus is complete. A deal reads its range of every part that has its language, up
to some 2G tokens of them: so a part is asked for 64 ranges at most, 8 million requests for 1T tokens of one language.
"""

from mmbert_jax.data.prepare.output import check_output
from mmbert_jax.data.prepare.rules import Rules
from mmbert_jax.data.prepare.run import prepare_corpus
from mmbert_jax.data.prepare.settings import Settings

__all__ = ["Rules", "Settings", "check_output", "prepare_corpus"]
