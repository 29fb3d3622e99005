"""How much may happen in one run: what `make model` explores, and what CI has time for."""

from chaos.model.state import Left

#: Two kills with an attempt that sleeps, in one switch; two kills over a switch and the one after it (the way back, or
#: a second try); a kill and a sleeper over both; three writes, so that both keys change and one of them twice.
FULL = (
    Left(writes=2, crashes=2, sleeps=1, switches=1),
    Left(writes=2, crashes=2, sleeps=0, switches=2),
    Left(writes=2, crashes=1, sleeps=1, switches=2),
    Left(writes=3, crashes=1, sleeps=0, switches=1),
)
QUICK = (
    Left(writes=2, crashes=1, sleeps=0, switches=2),
    Left(writes=1, crashes=1, sleeps=1, switches=1),
)
