"""Sentences that a run says once."""

from utils import remarks
from utils.remarks import remark


def test_a_sentence_is_said_once_a_run_and_by_one_process(capsys, monkeypatch):
    remarks.forget()
    for _ in range(2):
        remark("the head is new")
    assert capsys.readouterr().out == "note: the head is new\n"
    remarks.forget()
    monkeypatch.setenv("RANK", "1")
    remark("the head is new")
    assert capsys.readouterr().out == ""
    remarks.forget()
