"""`python -m rskd.engine`: the child process."""

from rskd.engine.server import main
from rskd.run import Session

if __name__ == "__main__":
    session = Session()
    main(session.run, prepare=session.prepare)
