from ckpt.kinds import sockets


def test_option_that_this_kernel_lacks():
    assert not sockets.differs(None, [0])
    assert not sockets.differs(None, [-1])
    assert sockets.differs(None, [1])
    assert sockets.differs([0], [1])
    assert not sockets.differs([4], [4])
