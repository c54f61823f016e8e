"""Three small timm networks distilled into one, in a plain PyTorch loop: python examples/own_loop.py

Handwritten digits that come with scikit-learn; under half a minute on two CPU cores.
"""

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import edc

digits = load_digits()
images = F.interpolate(torch.from_numpy(digits.images).float()[:, None] / 16, size=16).repeat(1, 3, 1, 1)
train = TensorDataset(images[:960], torch.from_numpy(digits.target[:960]))
test_images, test_labels = images[960:], torch.from_numpy(digits.target[960:])
torch.manual_seed(0)
draws = torch.Generator().manual_seed(0)


def train_network(network, loss_of, epochs):
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    for _ in range(epochs):
        for batch, labels in DataLoader(train, batch_size=64, shuffle=True, drop_last=True):
            loss = loss_of(network.train(), batch, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def distillation(student, batch, _labels):
    batch = edc.perturb(batch, "tdiv_sdiv", teachers=teachers, student=student, generator=draws)
    with torch.no_grad():
        teacher_logits = torch.stack([teacher(batch) for teacher in teachers])  # (M, N, K)
    return edc.latent_be_loss(edc.member_logits(student, batch), teacher_logits, temperature=4.0)


def labels_alone(network, batch, labels):
    return F.cross_entropy(network(batch), labels)


teachers = [train_network(timm.create_model("test_resnet", num_classes=10), labels_alone, epochs=3) for _ in range(3)]
members = edc.to_batch_ensemble(timm.create_model("test_resnet", num_classes=10), len(teachers), example=images[:2])
student = edc.fold(train_network(members, distillation, epochs=5))  # a plain timm network again

with torch.inference_mode():
    each = torch.stack([teacher(test_images).softmax(-1) for teacher in teachers])
    for name, probs in (("one teacher", each[0]), ("ensemble", each.mean(0)), ("student", student(test_images))):
        print(f"{name}: {(probs.argmax(-1) == test_labels).float().mean():.2%} of {len(test_labels)} test images")
