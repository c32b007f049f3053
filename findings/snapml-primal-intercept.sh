#!/usr/bin/env bash
# snapml 1.17.2: LogisticRegression(fit_intercept=True, dual=False) fits an intercept and then drops it: intercept_ is 0,
# and predict and predict_proba leave it out, although coef_ is that of the model with it (the same as dual=True gives,
# and another one than without fit_intercept).  Here 90 % of the labels are 1, and the mean predicted probability is 0.50
# in place of 0.90.  dual=False is the only mode of penalty="l1", so every sparse model is concerned; LinearRegression
# does the same (mean prediction 0 for targets whose mean is 9).  No warning is given.
# Way out: fit_intercept=False and a column of ones of your own in the primal mode.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
python3 -m venv venv
venv/bin/pip install -q snapml==1.17.2 numpy==2.4.6
seen=$(venv/bin/python - <<'P' 2>/dev/null
import numpy as np
import snapml

rng = np.random.default_rng(0)
x = rng.standard_normal((2000, 3)).astype(np.float32)
y = (rng.random(2000) < 0.9).astype(np.float32)
options = {"regularizer": 1.0, "max_iter": 3000, "tol": 1e-8}
dual, primal, l1, without = (
    snapml.LogisticRegression(**options, **more).fit(x, y)
    for more in (
        {"fit_intercept": True, "dual": True},
        {"fit_intercept": True, "dual": False},
        {"fit_intercept": True, "dual": False, "penalty": "l1"},
        {"fit_intercept": False, "dual": False},
    )
)
for model in (dual, primal, l1):
    print(f"{model.intercept_[0]:.2f} {model.predict_proba(x)[:, 1].mean():.2f}", end="; ")
print(np.allclose(primal.coef_, dual.coef_, atol=1e-4), np.allclose(primal.coef_, without.coef_, atol=1e-2), end="; ")
line = snapml.LinearRegression(**options, fit_intercept=True, dual=False).fit(x, 10 * y)
print(f"{np.mean(10 * y):.1f} {abs(float(np.mean(line.predict(x)))):.0f}")
P
)
echo "$seen"
expected="2.17 0.90; 0.00 0.50; 0.00 0.50; True False; 9.0 0"
[ "$seen" = "$expected" ] || { echo "changed: expected $expected" >&2; exit 1; }
