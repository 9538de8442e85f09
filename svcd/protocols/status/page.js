
'use strict';
(() => {
  const EVERY = 2000;
  const HEIGHT = 100, BASE = 98, LEAST = 8, WIDTH = 2;
  const floor = Math.floor;

  // These write as formatting.py does.
  const scaled = (value, units) => {
    let step = 0;
    while (value >= 1000 && step < units.length - 1) { value /= 1000; step += 1; }
    const places = value < 10 ? 2 : value < 100 ? 1 : 0;
    return (floor(value * 10 ** places) / 10 ** places).toFixed(places) + ' ' + units[step];
  };
  const long = (seconds) => {
    for (const [large, small, upper, lower] of [[86400, 3600, 'd', 'h'], [3600, 60, 'h', 'min'], [60, 1, 'min', 's']]) {
      if (seconds >= large) return `${floor(seconds / large)} ${upper} ${floor(seconds % large / small)} ${lower}`;
    }
    return `${seconds} s`;
  };
  const write = {
    text: (value) => Array.isArray(value) ? value.join(', ') : String(value),
    count: (value) => {
      const whole = floor(value);
      return whole < 100000 ? whole.toLocaleString('en-US') : scaled(whole, ['', 'k', 'M', 'G', 'T']);
    },
    size: (value) => value < 0 ? '–' : value < 1000 ? `${floor(value)} B`
      : scaled(value, ['B', 'kB', 'MB', 'GB', 'TB', 'PB']),
    rate: (value) => value === 0 || value >= 10 ? write.count(value) : (floor(value * 10) / 10).toFixed(1),
    duration: (value) => value < 0.1 ? scaled(value * 1000, ['ms']) : value < 1 ? `${floor(value * 1000)} ms`
      : value < 60 ? `${(floor(value * 10) / 10).toFixed(1)} s` : long(floor(value)),
    day: (value) => new Date(value * 1000).toISOString().slice(0, 10),
    ago: (value) => value < 60 ? `${floor(value)} s` : long(floor(value)),
  };

  const steps = (values, most, samples) => {
    if (!values.some((value) => value > 0)) return ['', ''];
    const start = (samples - values.length) * WIDTH;
    const heights = values.map((value) => BASE - floor(value * (BASE - 2) / most));
    let x = start, path = `M${x} ${heights[0]}`;
    for (const height of heights) { x += WIDTH; path += `V${height}H${x}`; }
    return [path, `${path}V${HEIGHT}H${start}Z`];
  };
  const bars = (values, most, samples) => values.map((value, index) => value ? `M${(samples - values.length + index) * WIDTH} `
    + `${HEIGHT}V${HEIGHT - Math.max(floor(value * BASE / most), LEAST)}h${WIDTH}V${HEIGHT}Z` : '').join('');

  const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const fill = (root, values) => {
    for (const element of root.querySelectorAll('[data-k]')) {
      const scope = element.closest('[data-scope]');
      const from = scope && scope !== root && root.contains(scope) ? values[scope.dataset.scope] : values;
      const value = from[element.dataset.k];
      set(element, write[element.dataset.f || 'text'](value));
      if (element.dataset.f !== undefined) element.classList.toggle('zero', value === 0);
    }
  };
  const draw = (svg, values, samples) => {
    const most = Math.max(1, ...values.arrivals, ...values.refusals);
    const [line, area] = steps(values.arrivals, most, samples);
    const paths = [area, line, bars(values.refusals, most, samples)];
    svg.querySelectorAll('path').forEach((path, index) => path.setAttribute('d', paths[index]));
    svg.setAttribute('aria-label', `${write.rate(values.rate)} per second now, at most `
      + `${write.rate(Math.max(0, ...values.arrivals) / values.seconds)} in the last 3 minutes`);
  };

  const cell = (kind, text, style) => {
    const element = document.createElement(kind);
    element.textContent = text;
    if (style) element.className = style;
    return element;
  };
  const rows = (body, made, empty) => {
    const list = made.map((cells) => { const row = document.createElement('tr'); row.append(...cells); return row; });
    if (!list.length) {
      const row = document.createElement('tr');
      row.className = 'none';
      row.append(cell('td', empty));
      row.firstChild.colSpan = 7;
      list.push(row);
    }
    body.replaceChildren(...list);
  };
  const reasons = (id, counts, empty) => rows(document.getElementById(id),
    Object.entries(counts).sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1)).map(([reason, count]) => {
      const name = cell('th', reason);
      name.scope = 'row';
      return [name, cell('td', write.count(count))];
    }), empty);

  const show = (status) => {
    document.body.dataset.state = status.state;
    const seconds = status.sample_seconds;
    status.totals.peak = Math.max(0, ...status.totals.arrivals) / seconds;
    status.totals.seconds = seconds;
    const known = new Map([...document.querySelectorAll('#services > tr')].map((row) => [row.dataset.id, row]));
    if (known.size !== status.services.length || status.services.some((each) => !known.has(each.id))) {
      // Other services than this page was made for.
      location.reload();
      return;
    }
    for (const element of document.querySelectorAll('header, .overview, .side')) fill(element, element.dataset.scope
      ? status[element.dataset.scope] : status);
    draw(document.querySelector('figure svg'), status.totals, status.samples);
    for (const service of status.services) {
      const row = known.get(service.id);
      service.seconds = seconds;
      service.certificate_text = service.certificate
        ? `certificate ${service.certificate === 'expired' ? 'expired' : 'expires'} ${write.day(service.certificate_expires)}` : '';
      row.dataset.state = service.state;
      row.dataset.certificate = service.certificate;
      fill(row, service);
      draw(row.querySelector('svg'), service, status.samples);
    }
    rows(document.getElementById('recent'), status.recent.map((each) => [
      cell('td', write.ago(each.ago)), cell('td', each.service), cell('td', each.peer || '–'),
      cell('td', write.duration(each.seconds)), cell('td', write.size(each.in), each.in === 0 ? 'zero' : ''),
      cell('td', write.size(each.out), each.out === 0 ? 'zero' : ''),
      cell('td', each.reason, each.reason === 'done' ? '' : 'odd'),
    ]), 'none yet');
    reasons('refused', status.refused, 'none');
    reasons('ended', status.ended, 'none yet');
  };

  const live = document.getElementById('live');
  const look = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch('status.json', { cache: 'no-store' });
        if (!answer.ok) throw new Error(answer.status);
        show(await answer.json());
        set(live, 'live, every 2 seconds');
        live.classList.remove('lost');
      } catch {
        set(live, 'no answer from the daemon; last known figures');
        live.classList.add('lost');
      }
    }
    setTimeout(look, EVERY);
  };
  document.addEventListener('visibilitychange', () => { if (!document.hidden) set(live, 'updating'); });
  look();
})();
