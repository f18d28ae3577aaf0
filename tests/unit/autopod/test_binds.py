from autopod.binds import Mount, names, parse

ROOT = Mount(1, "8:1", "/", "/")


def bound(root, point="/autopod/exim/root", device="8:1"):
    return Mount(9, device, root, point)


def test_mountinfo_is_parsed_with_escapes_and_optional_fields():
    text = (
        "22 1 0:21 / /proc rw,relatime shared:5 master:1 - proc proc rw\n"
        "30 1 8:1 /my\\040pod\\134 /a\\011b rw - ext4 /dev/sda1 rw\n"
    )
    assert parse(text) == [Mount(22, "0:21", "/", "/proc"), Mount(30, "8:1", "/my pod\\", "/a\tb")]


def test_a_directory_of_the_root_file_system():
    assert names(bound("/pod"), [ROOT, bound("/pod")]) == ["/pod"]


def test_a_file_system_of_its_own():
    own = Mount(3, "8:2", "/", "/srv/pod")
    assert names(bound("/", device="8:2"), [ROOT, own]) == ["/srv/pod"]


def test_the_shortest_name_comes_first():
    other = Mount(4, "8:1", "/srv", "/mnt/elsewhere")
    found = names(bound("/srv/pod"), [other, ROOT])
    assert found == ["/srv/pod", "/mnt/elsewhere/pod"]


def test_a_mount_of_a_neighbouring_or_deeper_directory_does_not_show_it():
    mounts = [Mount(4, "8:1", "/srv/po", "/a"), Mount(5, "8:1", "/srv/pod/etc", "/b")]
    assert names(bound("/srv/pod"), mounts) == []


def test_nothing_below_the_barrier_counts():
    twice = Mount(5, "8:1", "/pod", "/autopod/exim/other")
    assert names(bound("/pod"), [twice]) == []
