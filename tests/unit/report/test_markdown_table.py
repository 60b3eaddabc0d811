"""Tables as Markdown and as CSV."""

from utils.report.tables import markdown_table, save_table


def test_words_stand_to_the_left_and_numbers_to_the_right():
    table = markdown_table(("net", "method", "%"), [("a", "kd", "1.5"), ("b", "", "2.5")], texts=2)
    assert table.split("\n") == [
        "| net | method | % |",
        "|---|---|---:|",
        "| a | kd | 1.5 |",
        "| b |  | 2.5 |",
    ]


def test_only_the_files_that_are_named_are_written(tmp_path, capsys):
    save_table("text", [["a"], [1]], None, None)
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out
    markdown, csv = tmp_path / "t.md", tmp_path / "t.csv"
    save_table("text", [["a"], [1]], str(markdown), str(csv))
    assert (markdown.read_text(), csv.read_text().split()) == ("text", ["a", "1"])
    assert capsys.readouterr().out == f"saved {markdown}\nsaved {csv}\n"
