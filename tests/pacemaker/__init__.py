"""`make test-pacemaker`: Pacemaker moves a pod."""
