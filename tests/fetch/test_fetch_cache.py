from askd_ray.fetch.cache import find_damage
from askd_ray.files import sha256_of_file


def test_damage_names_the_first_changed_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    known = {name: sha256_of_file(tmp_path / name) for name in ("a", "b")}
    assert find_damage(tmp_path, known) is None
    (tmp_path / "b").write_text("c")
    assert find_damage(tmp_path, known) == f"{tmp_path / 'b'} is corrupt (its SHA-256 is not the expected one)"
    (tmp_path / "b").unlink()
    assert find_damage(tmp_path, known) == f"{tmp_path / 'b'} is missing"
