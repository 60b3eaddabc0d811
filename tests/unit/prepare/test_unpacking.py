import io
import tarfile
import zipfile
from types import SimpleNamespace

import pytest

from tests.mistakes import refused
from utils.prepare import unpacking
from utils.prepare.unpacking import find, unpacked


def make_tar(path, names, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 7
            tar.addfile(member, io.BytesIO(b"content"))
    return path


def make_zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return path


def make_archive(path, names):
    """Make what the suffix says."""
    if path.suffix == ".zip":
        return make_zip(path, names)
    return make_tar(path, names, "w:gz" if path.suffix == ".tgz" else "w")


@pytest.mark.parametrize("name", ["images.tar", "CUB.tgz", "tiny.zip"])
def test_an_archive_is_there_during_the_run_only(tmp_path, name):
    archive = make_archive(tmp_path / name, ["Images/a/1.jpg"])
    with unpacked([archive], {}, tmp_path / "scratch") as folders:
        assert find(folders, "Images", name) == tmp_path / "scratch" / "Images"
        assert (tmp_path / "scratch/Images/a/1.jpg").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_is_left_after_an_error_or_a_killed_run(tmp_path):
    archive = make_tar(tmp_path / "a.tar", ["new"])
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "old").touch()
    with pytest.raises(KeyboardInterrupt), unpacked([archive], {}, tmp_path / "scratch"):
        assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["new"]
        raise KeyboardInterrupt
    assert not (tmp_path / "scratch").exists()


def test_a_folder_may_hold_the_official_archive(tmp_path):
    make_tar(tmp_path / "images.tar", ["Images/1.jpg"])
    with unpacked([tmp_path], {"Images": "images.tar"}, tmp_path / "scratch") as folders:
        assert find(folders, "Images", "images.tar").is_dir()


def test_an_archive_beside_its_content_is_left_packed(tmp_path, capsys):
    make_tar(tmp_path / "images.tar", ["Images/1.jpg"])
    (tmp_path / "Images").mkdir()
    with unpacked([tmp_path], {"Images": "images.tar"}, tmp_path / "scratch") as folders:
        assert folders == [tmp_path]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["../outside.txt", "a/../../outside.txt"])
@pytest.mark.parametrize("archive", ["evil.tar", "evil.zip"])
def test_an_archive_cannot_write_outside(tmp_path, archive, name):
    archive = make_archive(tmp_path / archive, [name])
    work = tmp_path / "work"
    with (
        refused(archive, name),
        unpacked([archive], {}, work / "scratch"),
    ):
        pass
    assert not (work / "outside.txt").exists()
    assert not (work / "scratch").exists()


def test_damaged_archives_are_named(tmp_path):
    (tmp_path / "text.tgz").write_text("no archive")
    whole = make_tar(tmp_path / "whole.tgz", [f"{n}.jpg" for n in range(100)], "w:gz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    packed = make_zip(tmp_path / "whole.zip", ["1.jpg", "2.jpg"]).read_bytes()
    (tmp_path / "cut.zip").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "spoilt.zip").write_bytes(packed.replace(b"content", b"other!!", 1))
    for name in ("text.tgz", "cut.tgz", "cut.zip", "spoilt.zip"):
        with (
            refused(name),
            unpacked([tmp_path / name], {}, tmp_path / "scratch"),
        ):
            pass
        assert not (tmp_path / "scratch").exists()


def test_a_source_that_is_not_there_is_named(tmp_path):
    with (
        refused("--src", tmp_path / "nowhere"),
        unpacked([tmp_path / "nowhere"], {}, tmp_path),
    ):
        pass


def test_find_takes_the_nearest_and_refuses_none_or_two(tmp_path):
    (tmp_path / "a/b/Images").mkdir(parents=True)
    assert find([tmp_path], "Images", "images.tar") == tmp_path / "a/b/Images"
    assert find([tmp_path / "a/b/Images"], "Images", "images.tar") == tmp_path / "a/b/Images"
    (tmp_path / "Images").mkdir()
    assert find([tmp_path], "Images", "images.tar") == tmp_path / "Images"
    assert find([tmp_path, tmp_path / "Images"], "Images", "images.tar") == tmp_path / "Images"
    with refused("Annotation", tmp_path, "--src", "annotation.tar"):
        find([tmp_path], "Annotation", "annotation.tar")
    with refused(tmp_path / "a/b/Images", tmp_path / "Images", "--src"):
        find([tmp_path / "a", tmp_path], "Images", "images.tar")


def make_bomb(path, size):
    """Make an archive of one file of zeros."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(size))
    else:
        with tarfile.open(path, "w:gz") as tar:
            member = tarfile.TarInfo("zeros")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    return path


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tgz"])
def test_what_unpacks_to_many_times_its_size_is_refused_before_it_is_written(
    tmp_path, name, monkeypatch
):
    monkeypatch.setattr(unpacking, "SMALL", 1000)
    bomb = make_bomb(tmp_path / name, 1_000_000)
    with refused(name), unpacked([bomb], {}, tmp_path / "scratch"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    # As much from an archive that is not so small is no bomb.
    monkeypatch.setattr(unpacking, "MOST_RATIO", 10_000)
    with unpacked([bomb], {}, tmp_path / "scratch") as folders:
        assert (folders[0] / "zeros").stat().st_size == 1_000_000


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar"])
def test_what_the_disk_has_no_room_for_is_refused_before_it_is_written(tmp_path, name, monkeypatch):
    archive = make_archive(tmp_path / name, ["1.jpg", "2.jpg", "3.jpg"])
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: SimpleNamespace(free=20))
    with refused(name, "21 bytes"), unpacked([archive], {}, tmp_path / "scratch"):
        pass
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar"])
def test_more_files_than_any_data_set_has_are_refused(tmp_path, name, monkeypatch):
    archive = make_archive(tmp_path / name, ["1.jpg", "2.jpg", "3.jpg"])
    monkeypatch.setattr(unpacking, "MOST_FILES", 2)
    with refused(name, 2), unpacked([archive], {}, tmp_path / "scratch"):
        pass


@pytest.mark.parametrize("name", ["long.tar", "long.tgz"])
def test_a_header_is_measured_before_it_is_read(tmp_path, name, monkeypatch):
    """One of PAX may say that it has any size, and `tarfile` reads it whole."""
    member = tarfile.TarInfo("a.txt")
    member.pax_headers = {"comment": "x" * 200_000}
    mode = "w:gz" if name.endswith("gz") else "w"
    with tarfile.open(tmp_path / name, mode, format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    with unpacked([tmp_path / name], {}, tmp_path / "scratch") as (folder,):
        assert (folder / "a.txt").is_file()
    monkeypatch.setattr(unpacking, "MOST_AT_ONCE", 100_000)
    with refused(name, "0.20 MB"), unpacked([tmp_path / name], {}, tmp_path / "scratch"):
        pass
