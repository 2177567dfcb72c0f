"""Secure aggregation: the server learns the sum of the clients' updates and none of them.

The four-round protocol of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
Machine Learning", CCS 2017, for participants that keep to it (the honest-but-curious setting: no
signatures and no consistency check). Each round of training runs it once, with fresh keys:

    MODEL      -> ADVERTISE   two public keys: one for sealing shares, one for masks
    KEYS       -> SHARES      everybody's keys; shares of the mask key and of a seed, sealed for each peer
    INBOX      -> MASKED      the shares for this client; the update under all its masks (training lies here)
    SURVIVORS  -> UNMASK      who is in the sum; a share of each survivor's seed, of each other's mask key

What a client adds of pairwise masks cancels out with its peer's; its own mask, from the seed, keeps an
update hidden that comes late, after its mask key has been given away. As long as a threshold of clients
answer, whoever drops out in any round is taken out exactly.

`client` and `server` are the two sides without a network, `masks`, `shamir` and `keys` what they are
built of, `messages` the bodies on the wire, `quantisation` the way from floats to integers modulo 2^64.
"""
