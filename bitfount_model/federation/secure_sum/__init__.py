"""Between the pods' updates and their sum: only the sum is seen, never an update, also where pods drop out on the way.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017), the flow against
honest-but-curious parties (figure 4), with signed keys. A round has four steps, and pods may be lost before each of them:

1. keys: every pod publishes two X25519 keys, signed by its identity, and a commitment to its self mask (`SecurePod.keys`).
   U1 are the pods that did.
2. shares: every pod splits the seeds of its masking key and of its self mask into one share for each pod of U1, any
   `threshold` of which give the seed back, and encrypts each for its receiver (`SecurePod.shares`). U2 are the pods that did.
3. masked: every pod adds to its vector, in Z_2^64, its self mask and one mask for each other pod of U2, which that pod
   subtracts (`SecurePod.masked`). U3, the survivors, are the pods that did.
4. unmask: every survivor gives its shares of the survivors' self masks and of the dropped pods' masking keys
   (`SecurePod.unmask`). With `threshold` answers, `unmasked_sum` takes the masks off the sum of the survivors' vectors.

A pod hands out shares once a round, and of each pod one kind only. Since the threshold is above half of the pods, whoever
asks different pods for different things cannot collect enough shares of both kinds for anyone: the vector of one pod stays
masked, as long as fewer than `2 * threshold - n` pods help the asker.

Vectors are made and read by `bitfount_model.federation.fixed_point`.
"""

from __future__ import annotations

from bitfount_model.federation.secure_sum.context import MINIMUM_PODS, Context, default_threshold
from bitfount_model.federation.secure_sum.messages import EncryptedShare, PublicKeys, UnmaskAnswer
from bitfount_model.federation.secure_sum.pod import SecurePod
from bitfount_model.federation.secure_sum.roster import checked_roster
from bitfount_model.federation.secure_sum.server import unmasked_sum

__all__ = [
    "MINIMUM_PODS",
    "Context",
    "EncryptedShare",
    "PublicKeys",
    "SecurePod",
    "UnmaskAnswer",
    "checked_roster",
    "default_threshold",
    "unmasked_sum",
]
