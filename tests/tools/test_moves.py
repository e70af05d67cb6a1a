"""How far whoever reads what happens to a reply must go."""

from tests.tools import moves


def test_hearing_five_replies_takes_few_calls_between_files():
    assert 100 < moves.moves_to_hear(5).total() <= 245


def test_another_reply_adds_few():
    fewer, more = moves.moves_to_hear(5).total(), moves.moves_to_hear(25).total()
    assert more - fewer <= 20 * 35


def test_the_command_prints_them(capsys):
    moves.main()
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "calls between" in first
    assert ".py" in last
