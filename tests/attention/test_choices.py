import torch

from proteinlm.attention.choices import Choices


def test_a_repetition_hands_out_what_the_first_pass_chose():
    choices = Choices()
    first = [choices.make(lambda n=n: torch.tensor(n)) for n in range(3)]
    again = choices.repeat()
    assert [again.make(lambda: torch.tensor(-1)) for _ in range(3)] == first


def test_a_repetition_can_be_had_twice():
    choices = Choices()
    choices.make(lambda: torch.tensor(7))
    assert choices.repeat().make(lambda: torch.tensor(-1)) == choices.repeat().make(lambda: torch.tensor(-2)) == 7
