# The service of examples/fair_service, or your own app.py mounted at /app. It runs as a user without rights, and
# keeps its files in /data.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY async_task_manager async_task_manager
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[web,speed]" && rm -r /wheels \
    && useradd --system --uid 10001 --no-create-home atm \
    && mkdir /data && chown atm:atm /data
COPY examples/fair_service/app.py examples/fair_service/worker.py /app/
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER atm
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# Others can reach it, so it wants a token: docker run -e ATM_TOKEN=... -p 127.0.0.1:8000:8000 ...
CMD ["atm", "serve", "app:service", "--host", "0.0.0.0", "--port", "8000"]
