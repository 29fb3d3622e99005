"""Imported by the server that processes are forked from, and by nobody else: it ends with whom it serves."""

from chaos.orphans import end_with_parent

end_with_parent()
