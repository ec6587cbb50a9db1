"""What is done when a widget ends is done once; what the collector has ended by then is neither called nor kept."""

import gc
import threading
from weakref import ref

from qtpy.QtCore import QCoreApplication, QEvent, QObject
from qtpy.QtWidgets import QWidget

from napari_rskd import _farewell
from napari_rskd._farewell import when_destroyed


class Listener:
    def __init__(self) -> None:
        self.heard = 0

    def hear(self) -> None:
        self.heard += 1


def test_everything_that_was_asked_for_is_done_once(qtbot) -> None:
    listener, thing, before = Listener(), QObject(), len(_farewell._KEPT)
    when_destroyed(thing, listener.hear)
    when_destroyed(thing, lambda: listener.hear())
    thing.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    assert listener.heard == 2
    assert len(_farewell._KEPT) == before


def test_what_another_thread_has_collected_is_neither_called_nor_kept(qtbot) -> None:
    listener, widget, before = Listener(), QWidget(), set(_farewell._KEPT)
    widget.itself = widget  # only the collector ends it
    when_destroyed(widget, listener.hear)
    (kept,) = _farewell._KEPT - before
    gone = ref(listener)
    del listener, widget
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    assert gone() is None
    kept()  # as Qt does
    assert kept not in _farewell._KEPT
