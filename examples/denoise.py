"""Remove noise from a photograph with contourlets, and compare with wavelets; about half a minute on a CPU.

    python examples/denoise.py

writes `denoise.png` (original, noisy, wavelets, contourlets) and prints the peak signal-to-noise ratios.
"""

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from skimage import data, metrics, restoration

from rskd.contourlet import denoise

SIGMA = 25 / 255


def main() -> None:
    image = data.camera() / 255
    noisy = image + SIGMA * np.random.default_rng(0).standard_normal(image.shape)
    wavelets = restoration.cycle_spin(
        noisy, func=restoration.denoise_wavelet, max_shifts=3, func_kw={"method": "BayesShrink", "sigma": SIGMA}
    )
    pictures = {"original": image, "noisy": noisy, "wavelets": wavelets, "contourlets": denoise(noisy, SIGMA)}

    figure, axes = plt.subplots(1, len(pictures), figsize=(16, 4.4), layout="constrained")
    for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
        title = name
        if name != "original":
            title += f": {metrics.peak_signal_noise_ratio(image, picture, data_range=1):.2f} dB"
            print(title)
        axis.imshow(picture[40:240, 160:360], cmap="gray", vmin=0, vmax=1)
        axis.set(title=title, xticks=[], yticks=[])
    figure.savefig("denoise.png", dpi=120)


if __name__ == "__main__":
    main()
